//go:build !unix

package embed

import (
	"fmt"
	"os"
	"path/filepath"
)

// lockDir takes the data directory for this process by a file that only one can
// create. It stays behind after a crash and has to be deleted by hand then.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if os.IsExist(err) {
		return nil, fmt.Errorf("data directory %s is in use by another process; if none runs, delete %s", dir, name)
	}
	return f, err
}

func unlock(f *os.File) {
	_ = f.Close()
	_ = os.Remove(f.Name())
}
