package event_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
)

// gathered answers when as many callers wait as it has ids.
type gathered struct {
	n    int32
	all  chan struct{}
	err  error
	seen atomic.Int32
}

func (g *gathered) Schema(ctx context.Context, _ codec.SchemaRef) (*codec.Schema, error) {
	if g.seen.Add(1) == g.n {
		close(g.all)
	}
	select {
	case <-g.all:
		return nil, g.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func withIDs(n int) (out []*pipeline.Record) {
	for i := range 2 * n { // each id twice
		out = append(out, &pipeline.Record{Value: codec.AppendFrame(nil, i%n)})
	}
	return append(out, &pipeline.Record{Value: []byte("no frame")}, &pipeline.Record{})
}

// The unknown ids of a batch are looked up at the same time, each once. An id that the
// registry does not have is no error, but a registry that does not answer is one.
func TestUnknownSchemaIDsAreLookedUpTogether(t *testing.T) {
	for _, test := range []struct {
		answer error
		failed bool
	}{
		{pipeline.Reject(pipeline.ReasonUnknownSchema, "there is none"), false},
		{errors.New("the registry is down"), true},
	} {
		const n = 300
		schemas := &gathered{n: n, all: make(chan struct{}), err: test.answer}
		err := event.NewDecoder(schemas, nil, nil).Prepare(t.Context(), withIDs(n))
		if (err != nil) != test.failed || err != nil && pipeline.ClassOf(err) != pipeline.ClassAbort {
			t.Errorf("the answer %q results in %v", test.answer, err)
		}
		if got := schemas.seen.Load(); got != n {
			t.Errorf("%d look-ups, want %d", got, n)
		}
	}
}
