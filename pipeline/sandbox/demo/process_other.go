//go:build !linux

package demo

import "syscall"

// ownGroup returns the defaults: other systems have no common API for process groups.
func ownGroup() *syscall.SysProcAttr { return nil }
