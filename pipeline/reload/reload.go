// Package reload keeps values that are read from files, and reads the files again when
// they change: certificates and lists of tokens are replaced while a program runs.
package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// interval is the time between two looks at the files. Their content is compared, because
// a mounted volume replaces files by links whose time says nothing.
const interval = 2 * time.Second

// maxFile is the largest size of a file in bytes. Certificates and lists are far smaller.
const maxFile = 1 << 20

// A Files is a value that is made from one or more files. All methods except Check can be
// called by several goroutines.
type Files[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)
	log   *slog.Logger

	sum     [sha256.Size]byte     // of the contents that were parsed last; owned by the goroutine of Check
	current atomic.Pointer[T]     // the last value without an error
	problem atomic.Pointer[error] // of the last look; nil if there was none
}

// Open reads files for the first time. parse gets their contents in the order of the
// paths. Its error must not contain a secret.
func Open[T any](log *slog.Logger, parse func(contents [][]byte) (T, error), paths ...string) (*Files[T], error) {
	f := &Files[T]{paths: paths, parse: parse, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Get returns the value of the last files that could be read.
func (f *Files[T]) Get() T { return *f.current.Load() }

// Err returns why the files as they are now cannot be used, nil if they are used.
func (f *Files[T]) Err() error {
	if p := f.problem.Load(); p != nil {
		return *p
	}
	return nil
}

// Run looks at the files until the context ends.
func (f *Files[T]) Run(ctx context.Context) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			f.Check()
		}
	}
}

// Check looks at the files now. While they cannot be read, the last value stays.
func (f *Files[T]) Check() {
	before := f.Err()
	err := f.load()
	switch {
	case errors.Is(err, errSame):
	case err == nil:
		f.problem.Store(nil)
		f.log.Info("read files again, because they changed", "files", strings.Join(f.paths, ", "))
	default:
		f.problem.Store(&err)
		if before == nil || before.Error() != err.Error() {
			f.log.Error("cannot use changed files; continuing with what they had before", "files", strings.Join(f.paths, ", "), "err", err)
		}
	}
}

// errSame is the error of load if the files did not change.
var errSame = errors.New("the files have not changed")

func (f *Files[T]) load() error {
	contents := make([][]byte, len(f.paths))
	hash := sha256.New()
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() > maxFile {
			return fmt.Errorf("%s has %d bytes, which is more than the %d that such a file can have", path, info.Size(), maxFile)
		}
		if contents[i], err = os.ReadFile(path); err != nil {
			return err
		}
		fmt.Fprintf(hash, "%d\n", len(contents[i]))
		hash.Write(contents[i])
	}
	sum := [sha256.Size]byte(hash.Sum(nil))
	if bytes.Equal(sum[:], f.sum[:]) && f.current.Load() != nil {
		if f.Err() == nil {
			return errSame
		}
	}
	v, err := f.parse(contents)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(f.paths, " and "), err)
	}
	f.current.Store(&v)
	f.sum = sum
	return nil
}
