package keyring

import (
	"context"
	"fmt"
	"sync"

	"millrace/pipeline"
)

// RecordWriter writes records; kafka.Writer implements it. done is called once per
// record, from any goroutine, with nil when Kafka has acknowledged the record. By
// then the record has its partition and offset. Flush waits until every record has
// a result, or returns the context's error.
type RecordWriter interface {
	Write(ctx context.Context, r *pipeline.Record, done func(error))
	Flush(ctx context.Context) error
}

// Results collects the results of a number of writes.
type Results struct {
	all chan struct{} // closed when no result is missing

	mu   sync.Mutex // guards open and err
	open int        // missing results
	err  error      // the first error
}

// NewResults returns the results of n writes.
func NewResults(n int) *Results {
	r := &Results{all: make(chan struct{}), open: n}
	if n == 0 {
		close(r.all)
	}
	return r
}

// Add adds the result of a write. It may be called from any goroutine.
func (r *Results) Add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	if r.open--; r.open == 0 {
		close(r.all)
	}
}

// Wait waits for all results or the end of the context. It returns nil if every
// record is acknowledged, else the first error, or else the number of missing
// results as an error.
func (r *Results) Wait(ctx context.Context) error {
	select {
	case <-r.all:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && r.open > 0 {
		return fmt.Errorf("%d records without an answer", r.open)
	}
	return r.err
}
