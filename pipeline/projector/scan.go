package projector

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/url"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
)

// scanned are the aggregates of one worker, in order of their ids.
type scanned struct {
	next func() (query.Aggregate, bool)
	stop func()
	a    query.Aggregate
	ok   bool
	at   []query.Position
	err  error
}

// Scan implements [query.Projection]: it merges the workers.
func (c *clusterReader) Scan(ctx context.Context, after string, f func(query.Aggregate) bool) (at []query.Position, err error) {
	sources := []*scanned{c.scanLocal(ctx, after)}
	for _, h := range c.holders() {
		sources = append(sources, c.scanRemote(ctx, h, after))
	}
	defer func() {
		for _, s := range sources {
			s.stop()
			err = errors.Join(err, s.err)
		}
	}()
	for _, s := range sources {
		if s.a, s.ok = s.next(); s.err != nil {
			return nil, s.err
		}
		at = append(at, s.at...)
	}
	if at, err = c.complete(at); err != nil {
		return nil, err
	}
	for {
		var first *scanned
		for _, s := range sources {
			if s.ok && (first == nil || s.a.ID < first.a.ID || s.a.ID == first.a.ID && s.a.At.Offset > first.a.At.Offset) {
				first = s
			}
		}
		if first == nil {
			return at, nil
		}
		id := first.a.ID
		if !f(first.a) {
			return at, nil
		}
		for _, s := range sources {
			// A partition that moves may be with two workers.
			if s.ok && s.a.ID == id {
				if s.a, s.ok = s.next(); s.err != nil {
					return nil, s.err
				}
			}
		}
	}
}

func (c *clusterReader) scanLocal(ctx context.Context, after string) *scanned {
	s := &scanned{at: c.local.Partitions()}
	s.next, s.stop = iter.Pull(func(yield func(query.Aggregate) bool) {
		_, s.err = c.local.Scan(ctx, after, yield)
	})
	return s
}

func (c *clusterReader) scanRemote(ctx context.Context, h holder, after string) *scanned {
	s := &scanned{}
	s.next, s.stop = iter.Pull(func(yield func(query.Aggregate) bool) {
		s.err = c.fromHolder(ctx, h, "scan", url.Values{"after": {after}}, func(body io.Reader) error {
			dec := json.NewDecoder(body)
			for {
				var line reader.ScanLine
				if err := dec.Decode(&line); err != nil {
					return err
				}
				switch {
				case line.End:
					return nil
				case line.Aggregate == nil:
					s.at = line.At
				case !yield(*line.Aggregate):
					return nil
				}
			}
		})
	})
	return s
}
