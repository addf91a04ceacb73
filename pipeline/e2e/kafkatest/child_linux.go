package kafkatest

import "syscall"

// dieWithParent makes a process end when this one does, however that ends: a
// test that runs into its time limit leaves no broker behind.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
