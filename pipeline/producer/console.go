package producer

import (
	"fmt"
	"io"
	"sync"
)

// console prints messages on stderr and, on a terminal, keeps one status line below
// them. It is safe for concurrent use.
type console struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex // guards shown and the writes to w
	shown string     // the status line
}

// printf prints a message as a line.
func (c *console) printf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf(format, args...) + "\n"
	if c.shown != "" {
		text = "\r\x1b[K" + text + c.shown
	}
	_, _ = io.WriteString(c.w, text) // stderr is the only place to report an error
}

// status replaces the status line; "" removes it.
func (c *console) status(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.terminal || text == c.shown {
		return
	}
	c.shown = text
	_, _ = io.WriteString(c.w, "\r\x1b[K"+text)
}
