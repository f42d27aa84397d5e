package wecom

import "unsafe"

// viewString returns b as a string without a copy. It must not outlive the call that it is
// made in, during which nobody may write to b.
func viewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// viewBytes returns s as bytes without a copy. Nobody may write to them.
func viewBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
