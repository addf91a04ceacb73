//go:build !linux

package kafkatest

import "syscall"

// dieWithParent returns nil, because this system cannot kill a child process together with
// its parent. A test that exceeds its timeout may leave a java process behind.
func dieWithParent() *syscall.SysProcAttr { return nil }
