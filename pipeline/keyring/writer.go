package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// AppendKey appends the record key that a value is: text as it is, numbers in
// decimal.
func AppendKey(dst []byte, n *codec.Node, enc []byte) ([]byte, error) {
	if other, null, _, ok := n.Nullable(); ok {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		if branch == int64(null) {
			return dst, errors.New("expected the record key, found null")
		}
		n, enc = other, rest
	}
	if n.Kind != codec.String {
		v, _, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		return fmt.Append(dst, v), nil
	}
	text, _, err := codec.ReadText(enc)
	if err == nil && len(text) == 0 {
		err = errors.New("expected the record key, found an empty text")
	}
	return append(dst, text...), err
}

// RecordWriter is what a sender needs of kafka.Writer.
type RecordWriter interface {
	Write(ctx context.Context, r *pipeline.Record, done func(error))
	Flush(ctx context.Context) error
}

// Results gathers what became of a request's records. The writer's
// callbacks add, each from its own goroutine.
type Results struct {
	All chan struct{} // closed when none is open

	mu   sync.Mutex // guards what follows
	Open int
	err  error // the first
}

func (f *Results) Add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	if f.Open--; f.Open == 0 {
		close(f.All)
	}
}

// Get returns why not every record is known to be in Kafka, or nil.
func (f *Results) Get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil && f.Open > 0 {
		return fmt.Errorf("%d records without an answer", f.Open)
	}
	return f.err
}
