package demo

import (
	"syscall"
)

// ownGroup puts a child into its own process group, so that Ctrl-C in a terminal does not
// reach it: the demo stops the children in order. A child also ends when this process ends,
// even after a SIGKILL.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
