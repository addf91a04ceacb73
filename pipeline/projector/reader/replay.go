package reader

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// replayChunk is the number of aggregates from the store per call of the callback.
const replayChunk = 256

// maxSorted bounds the states that a replay sorts in memory, by their ids and offsets.
const maxSorted = 1 << 18

// replay reports, from the store, the aggregates that changed from the offset at which
// the feed starts up to the offset at which the partition was joined. Later changes come
// from the queue.
func (r *Reader) replay(ctx context.Context, l *followed, id string, f func(query.Changes) error) error {
	p := &replay{ctx: ctx, to: l, view: l.partition.View(), at: l.partition.At(l.joined), f: f}
	err := p.run(id, l.indexed && r.indexesEach())
	if err = errors.Join(err, p.failed, p.view.Close()); err != nil {
		return err
	}
	p.flush(false) // the callback may be slow, and the view is closed before
	return p.failed
}

// indexesEach reports whether the history has each event under each aggregate that it
// changed. It does not for windows that overlap.
func (r *Reader) indexesEach() bool {
	window := r.fold.Window()
	return window.Every >= window.Size
}

// replay is a replay that runs. One goroutine has it.
type replay struct {
	ctx    context.Context
	to     *followed
	view   *states.View
	at     query.Position
	f      func(query.Changes) error
	failed error // the first error of a report; nothing is reported afterwards

	outOfOrder map[string]int64 // aggregate -> next offset when it changed out of order
	pending    []string         // ids of outOfOrder that are not reported yet, by offset
	sorted     bool             // reports are in the order of the log
	chunk      query.Changes
}

// run reports everything but the last chunk.
func (p *replay) run(id string, history bool) error {
	if err := p.findOutOfOrder(id); err != nil {
		return err
	}
	first := int64(-1)
	if history && p.to.next > 0 {
		var err error
		if first, err = p.view.FirstEvent(); err != nil {
			return err
		}
	}
	var err error
	switch {
	case id != "":
		if a := p.get([]byte(id)); a != nil {
			p.reportUsual(id, a, a.Offset+1)
		}
	case first >= 0 && first <= p.to.next:
		err = p.byHistory()
	default:
		err = p.byState(maxSorted)
	}
	p.reportOutOfOrder(math.MaxInt64)
	return err
}

// findOutOfOrder finds the aggregates that changed out of order.
func (p *replay) findOutOfOrder(id string) (err error) {
	p.outOfOrder, err = p.to.partition.ChangedOutOfOrder(p.view, p.to.next, p.to.joined)
	if id != "" {
		maps.DeleteFunc(p.outOfOrder, func(other string, _ int64) bool { return other != id })
	}
	p.pending = slices.SortedFunc(maps.Keys(p.outOfOrder), func(a, b string) int { return cmp.Compare(p.outOfOrder[a], p.outOfOrder[b]) })
	return err
}

// byHistory reads the history in the order of the log, and reports each aggregate at
// its last event.
func (p *replay) byHistory() error {
	p.sorted = true
	return p.view.EventsInOrder(p.to.next, p.to.joined, func(e *states.Event) bool {
		p.reportOutOfOrder(e.Offset)
		if a := p.get(e.Aggregate); a != nil && a.Offset == e.Offset {
			p.reportUsual(string(e.Aggregate), a, e.Offset+1)
		}
		return p.failed == nil
	})
}

// byState reads the states where there is no history: in the order of the log if there
// are at most so many to report, else in the order of their ids.
func (p *replay) byState(most int) error {
	type place struct {
		offset int64
		id     string
	}
	var places []place
	if err := p.view.States("", func(id []byte, a *fold.Aggregate) bool {
		if a.Offset >= p.to.next && a.Offset < p.to.joined {
			places = append(places, place{a.Offset, string(id)})
		}
		return len(places) <= most
	}); err != nil {
		return err
	}
	if len(places) > most {
		return p.view.States("", func(id []byte, a *fold.Aggregate) bool {
			own := *a
			own.State = slices.Clone(a.State)
			p.reportUsual(string(id), &own, a.Offset+1)
			return p.failed == nil
		})
	}
	p.sorted = true
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.offset, b.offset) })
	for i, at := range places {
		p.reportOutOfOrder(at.offset)
		next := at.offset + 1
		if i+1 < len(places) && places[i+1].offset == at.offset {
			next = at.offset // see fresh
		}
		if a := p.get([]byte(at.id)); a != nil {
			p.reportUsual(at.id, a, next)
		}
		if p.failed != nil {
			break
		}
	}
	return nil
}

// get returns a state, nil if there is none.
func (p *replay) get(id []byte) *fold.Aggregate {
	a := &fold.Aggregate{}
	ok, err := p.view.State(id, a)
	if p.failed = errors.Join(p.failed, err); p.failed != nil || !ok {
		return nil
	}
	return a
}

// reportUsual reports an aggregate that changed by its last event. next is the offset
// from which a feed continues after it.
func (p *replay) reportUsual(id string, a *fold.Aggregate, next int64) {
	changed, later := p.outOfOrder[id]
	if a.Offset >= p.to.next && a.Offset < p.to.joined && !(later && changed > a.Offset) {
		p.report(id, a, next)
	}
}

// reportOutOfOrder reports the aggregates that changed out of order, up to an offset.
func (p *replay) reportOutOfOrder(offset int64) {
	for len(p.pending) > 0 && p.outOfOrder[p.pending[0]] <= offset && p.failed == nil {
		id := p.pending[0]
		p.pending = p.pending[1:]
		// An aggregate that has changed as usual since is reported for that.
		if a := p.get([]byte(id)); a != nil && a.Offset < p.outOfOrder[id] {
			p.to.sent[id] = sentState{a.Version, p.to.partition.Status(id, a)}
			p.report(id, a, p.outOfOrder[id])
		}
	}
}

// report adds an aggregate to the chunk.
func (p *replay) report(id string, a *fold.Aggregate, next int64) {
	if a.Version == 0 {
		return
	}
	p.chunk.Aggregates = append(p.chunk.Aggregates, p.to.partition.Describe(id, a, p.at))
	if p.sorted {
		p.chunk.Next = append(p.chunk.Next, next)
	}
	if len(p.chunk.Aggregates) == replayChunk {
		p.flush(true)
	}
}

// flush passes the chunk to the callback.
func (p *replay) flush(more bool) {
	p.chunk.At, p.chunk.More = p.at, more
	p.failed = errors.Join(p.failed, p.f(p.chunk), p.ctx.Err())
	p.chunk = query.Changes{}
}
