package demo

import (
	"syscall"
)

// ownGroup keeps Ctrl-C in a terminal from a child: it is stopped when its turn
// comes. It also ends when this process does, however that ends.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
