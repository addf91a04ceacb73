package cli

import (
	"os"

	"golang.org/x/term"
)

// usualWidth is the assumed width of a terminal that does not report one, in characters.
const usualWidth = 100

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// TerminalWidth returns the width of a terminal in characters.
func TerminalWidth(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return usualWidth
	}
	return width
}

// Colors reports whether output on Stdout may have colors: it is a terminal, and the
// environment does not disable them (no-color.org).
func (e *Env) Colors() bool {
	f, ok := e.Stdout.(*os.File)
	return ok && IsTerminal(f) && e.Getenv("NO_COLOR") == "" && e.Getenv("TERM") != "dumb"
}
