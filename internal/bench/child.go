package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	// childAnswer is how long a child may take to get ready or to answer a command.
	childAnswer = 30 * time.Second
	// childStop is how long it may take to stop before it is killed.
	childStop = 10 * time.Second
)

// child is a server in a process of its own, seen from Run.
type child struct {
	hello
	role   string
	cmd    *exec.Cmd
	in     io.Writer
	out    *bufio.Reader
	cancel context.CancelFunc
	stderr *lastLines
}

// startChild runs this program again in a role and waits until it is ready. The child
// ends with stop, with ctx, and with this process, however that ends.
func startChild(ctx context.Context, command []string, role string, set settings) (*child, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &child{role: role, cancel: cancel, stderr: new(lastLines)}
	if err := c.start(ctx, command, set); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	if err := c.read(&c.hello); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, errors.Join(err, c.stop()))
	}
	return c, nil
}

func (c *child) start(ctx context.Context, command []string, set settings) error {
	first, err := json.Marshal(set)
	if err != nil {
		return err
	}
	args := append(command[1:len(command):len(command)], c.role)
	c.cmd = exec.CommandContext(ctx, command[0], args...)
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	c.cmd.Stderr = c.stderr
	c.cmd.SysProcAttr = dieWithParent()
	c.cmd.WaitDelay = childStop
	c.cmd.Cancel = func() error {
		_ = in.Close()           // a child whose input has ended is already stopping
		return os.ErrProcessDone // Wait reports how it ended, not that it was asked to
	}
	c.in, c.out = in, bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return err
	}
	_, err = c.in.Write(append(first, '\n'))
	if err != nil {
		return errors.Join(err, c.stop())
	}
	return nil
}

// read decodes the next line that the child says.
func (c *child) read(v any) error {
	t := time.AfterFunc(childAnswer, c.cancel)
	defer t.Stop()
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return errors.New("it ended or did not answer")
	}
	return json.Unmarshal(line, v)
}

// ask gives the child a command.
func (c *child) ask(command string) (sample, error) {
	var s sample
	_, err := io.WriteString(c.in, command+"\n")
	if err == nil {
		err = c.read(&s)
	}
	if err == nil && s.Err != "" {
		err = errors.New(s.Err)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %s: %w", c.role, command, err)
	}
	return s, nil
}

// stop ends the child and waits for that. The error tells how it ended, if that was not
// in peace, and the last that it had to say.
func (c *child) stop() error {
	c.cancel()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", c.role, err, c.stderr)
	}
	return nil
}

// lastLines keeps the end of what is written to it.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	const keep = 2 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p[max(0, len(p)-keep):]...)
	l.buf = l.buf[max(0, len(l.buf)-keep):]
	return len(p), nil
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.TrimSpace(l.buf))
}
