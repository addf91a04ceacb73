//go:build !linux

package demo

import "syscall"

// ownGroup has no way here that all systems share.
func ownGroup() *syscall.SysProcAttr { return nil }
