package producer

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"millrace/pipeline/private"
)

// rejects counts bad lines and keeps them byte for byte. Each file is created with
// its first line. The sender's goroutine owns it.
type rejects struct {
	path   func(input string) string // the file for the lines of an input; nil: lines are only counted
	inputs []string                  // files that are read, which must not be overwritten

	paths   []string // created files
	count   int      // bad lines
	current string   // path of file
	file    *os.File
	w       *bufio.Writer
	ragged  bool // the last line has no newline yet
}

// add keeps a line, or the next piece of the previous one if start is false.
func (r *rejects) add(input string, line []byte, start bool) error {
	if start {
		r.count++
	}
	if r.path == nil {
		return nil
	}
	if path := r.path(input); r.file == nil || path != r.current {
		if err := r.open(path); err != nil {
			return err
		}
	}
	if start && r.ragged {
		_ = r.w.WriteByte('\n') // an error stays in w, and the next call returns it
	}
	if _, err := r.w.Write(line); err != nil {
		return fmt.Errorf("keeping a bad line: %w", err)
	}
	r.ragged = len(line) > 0 && line[len(line)-1] != '\n'
	return nil
}

func (r *rejects) open(path string) error {
	if err := r.close(); err != nil {
		return err
	}
	if to, err := os.Stat(path); err == nil {
		for _, name := range r.inputs {
			if from, err := os.Stat(name); err == nil && os.SameFile(from, to) {
				return fmt.Errorf("--rejects: %s is also an input; name another file", path)
			}
		}
	}
	f, err := private.Create(path)
	if err != nil {
		return fmt.Errorf("keeping a bad line: %w; name another file with --rejects", err)
	}
	r.file, r.w, r.current, r.ragged = f, bufio.NewWriter(f), path, false
	r.paths = append(r.paths, path)
	return nil
}

func (r *rejects) close() error {
	if r.file == nil {
		return nil
	}
	if r.ragged {
		_ = r.w.WriteByte('\n') // an error stays in w, and Flush returns it
	}
	err := errors.Join(r.w.Flush(), r.file.Close())
	r.file = nil
	if err != nil {
		return fmt.Errorf("keeping bad lines in %s: %w", r.current, err)
	}
	return nil
}
