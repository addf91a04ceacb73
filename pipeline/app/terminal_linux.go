package app

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalWidth returns how many characters fit in a line of a terminal.
func terminalWidth(f *os.File) int {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	if errno != 0 || size.columns == 0 {
		return usualWidth
	}
	return int(size.columns)
}

const usualWidth = 100
