package cli

import (
	"os"

	"golang.org/x/term"
)

// usualWidth is the width of a terminal that does not report one, in characters.
const usualWidth = 100

// TerminalWidth returns the number of characters in a line of a terminal.
func TerminalWidth(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return usualWidth
	}
	return width
}
