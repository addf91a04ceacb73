//go:build !linux

package kafkatest

import "syscall"

// dieWithParent has no way here to tie a process to this one: after a test that
// ran into its time limit, look for a java that is left.
func dieWithParent() *syscall.SysProcAttr { return nil }
