package kafkatest

import "syscall"

// dieWithParent returns attributes that kill a child process when this process ends, even
// by a crash. A test that exceeds its timeout leaves no broker behind.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
