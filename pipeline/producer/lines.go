package producer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxLine is the maximum length of a line, in bytes.
const maxLine = 16 << 20

// A lineSource returns lines in batches. next returns io.EOF after the last batch, and
// the context's error when the context has ended. The caller owns the batch until the
// next call.
type lineSource interface {
	next(ctx context.Context) (*lineBatch, error)
}

// lineBatch has whole lines of one input, or one piece of a line that is longer than
// maxLine.
type lineBatch struct {
	input string // its name in messages
	first int    // number of the first line, from 1
	data  []byte
	ends  []int // of each line, the offset in data after its newline
	long  piece
	err   error // the error that ended the input after these lines
}

// piece is the part of a line that a batch has.
type piece uint8

const (
	wholeLines piece = iota
	longStart        // the first piece of a line that is too long
	longMore         // a further piece of it
)

func (b *lineBatch) reset(input string, first int) {
	*b = lineBatch{input: input, first: first, data: b.data[:0], ends: b.ends[:0]}
}

// fileLines reads the lines of files, one after the other, plain or gzip. A goroutine
// of its own reads ahead, so decompressing and encoding overlap.
//
// A read from a terminal or a pipe cannot be interrupted. So when the context ends,
// next returns without waiting for the goroutine, which ends with its read or with the
// process. It touches nothing but its input.
type fileLines struct {
	full, free chan *lineBatch // a batch is owned by the goroutine that received it

	// Owned by the caller of next:
	last   *lineBatch // the batch that it returned last
	failed error
}

// stdinName is the name of "-" in messages.
const stdinName = "stdin"

// readFiles starts to read files; "-" is stdin.
func readFiles(ctx context.Context, names []string, stdin io.Reader) *fileLines {
	const ahead = 4
	l := &fileLines{full: make(chan *lineBatch), free: make(chan *lineBatch, ahead)}
	for range ahead {
		l.free <- new(lineBatch)
	}
	go func() {
		defer close(l.full)
		for _, name := range names {
			if !l.readFile(ctx, name, stdin) {
				return
			}
		}
	}()
	return l
}

func (l *fileLines) next(ctx context.Context) (*lineBatch, error) {
	if l.failed != nil {
		return nil, l.failed
	}
	if l.last != nil {
		l.free <- l.last
		l.last = nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	select {
	case b, ok := <-l.full:
		if !ok {
			return nil, io.EOF
		}
		l.last, l.failed = b, b.err
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readFile emits the lines of one file, and reports whether to continue with the next
// file.
func (l *fileLines) readFile(ctx context.Context, name string, stdin io.Reader) bool {
	in := stdin
	if name == "-" {
		name = stdinName
	} else {
		f, err := os.Open(name)
		if err != nil {
			return l.emit(ctx, &lineBatch{input: name, err: err}) && false
		}
		defer func() { _ = f.Close() }() // opened for reading only
		in = f
	}
	r := bufio.NewReaderSize(in, 64<<10)
	if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return l.emit(ctx, &lineBatch{input: name, err: fmt.Errorf("%s: %w", name, err)}) && false
		}
		r = bufio.NewReaderSize(z, 64<<10)
	}
	if mark, _ := r.Peek(3); string(mark) == "\ufeff" {
		_, _ = r.Discard(3) // cannot fail: the bytes are buffered
	}
	return l.split(ctx, name, r)
}

// split emits the lines of a reader, and reports whether it came to the end.
func (l *fileLines) split(ctx context.Context, name string, r *bufio.Reader) bool {
	const batchBytes, batchLines = 128 << 10, 1024
	line := 1
	b, ok := l.batch(ctx, name, line)
	if !ok {
		return false
	}
	start := 0 // of the current line in b.data
	for {
		part, err := r.ReadSlice('\n')
		b.data = append(b.data, part...)
		if errors.Is(err, bufio.ErrBufferFull) && len(b.data)-start <= maxLine {
			continue
		}
		switch size := len(b.data) - start; {
		case size > maxLine:
			if b, err = l.emitLong(ctx, b, start, line, r, err); b == nil {
				return false
			}
			line++
			start = 0
		case size > 0:
			b.ends = append(b.ends, len(b.data))
			line++
			start = len(b.data)
		}
		if err == nil && len(b.data) < batchBytes && len(b.ends) < batchLines && r.Buffered() > 0 {
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			b.err = fmt.Errorf("%s: after line %d: %w", name, line-1, err)
		}
		if !l.emit(ctx, b) || err != nil {
			return errors.Is(err, io.EOF)
		}
		if b, ok = l.batch(ctx, name, line); !ok {
			return false
		}
		start = 0
	}
}

// emitLong emits the lines of b before start, and then, piece by piece, the line at
// start, which is too long. It returns an empty batch for the next lines and the error
// of the last read; no batch if the context ended.
func (l *fileLines) emitLong(ctx context.Context, b *lineBatch, start, line int, r *bufio.Reader, err error) (*lineBatch, error) {
	tail := bytes.Clone(b.data[start:])
	b.data = b.data[:start]
	if !l.emit(ctx, b) {
		return nil, nil
	}
	for kind := longStart; ; kind = longMore {
		b, ok := l.batch(ctx, b.input, line)
		if !ok {
			return nil, nil
		}
		b.long, b.data = kind, append(b.data, tail...)
		if !l.emit(ctx, b) {
			return nil, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		tail, err = r.ReadSlice('\n')
	}
	next, ok := l.batch(ctx, b.input, line+1)
	if !ok {
		return nil, nil
	}
	return next, err
}

// batch returns an empty batch; ok is false if the context ended.
func (l *fileLines) batch(ctx context.Context, name string, first int) (*lineBatch, bool) {
	select {
	case b := <-l.free:
		b.reset(name, first)
		return b, true
	case <-ctx.Done():
		return nil, false
	}
}

// emit passes a batch to next; it returns false if the context ended.
func (l *fileLines) emit(ctx context.Context, b *lineBatch) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case l.full <- b:
		return true
	case <-ctx.Done():
		return false
	}
}
