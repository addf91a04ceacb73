package projector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
)

// How far the partitions of all workers are, and what all of them know of an event.

// absent says, of the partitions that are not among some, why nobody answers for them.
func (c *clusterReader) absent(have map[int32]bool) map[int32]string {
	out := map[int32]string{}
	state, _ := c.peers.control.Hosts()
	owners, here, self := state.Owners(c.local.Group(), c.local.Topic()), c.local.Here(), c.peers.instance
	for p := range int32(c.local.NumPartitions()) {
		instance, ok := owners[p]
		switch {
		case have[p]:
		case here[p]:
			out[p] = fmt.Sprintf("worker %s has it, and has yet to catch up", self)
		case !ok || instance == self:
			out[p] = "no worker has it"
		default:
			out[p] = fmt.Sprintf("%v has it, and has yet to catch up", &holder{instance: instance, address: state.Workers[instance].Address})
		}
	}
	return out
}

// AllPartitions implements [query.Projection].
func (c *clusterReader) AllPartitions(ctx context.Context) ([]query.Position, map[int32]string, error) {
	at := c.local.Partitions()
	for _, h := range c.holdersExcept(c.local.Answered()) {
		var part []query.Position
		if err := c.fromHolder(ctx, h, "positions", nil, func(body io.Reader) error { return json.NewDecoder(body).Decode(&part) }); err != nil {
			return nil, nil, err
		}
		at = append(at, part...)
	}
	at = furthest(at)
	have := map[int32]bool{}
	for _, p := range at {
		have[p.Partition] = true
	}
	return at, c.absent(have), nil
}

// askOutcome asks another worker what it knows of an event, which may wait.
func (c *clusterReader) askOutcome(ctx context.Context, h holder, e query.Sought, wait time.Duration) (query.Outcome, error) {
	event, err := reader.Parameter(e)
	if err != nil {
		return query.Outcome{}, err
	}
	var part reader.OutcomePart
	err = c.fromHolder(ctx, h, "outcome", url.Values{"event": {event}, "wait": {wait.String()}}, func(body io.Reader) error { return json.NewDecoder(body).Decode(&part) })
	if err == nil && part.NoHistory {
		err = query.ErrNoHistory
	}
	return part.Outcome, err
}

const (
	// awaitRound is how long workers wait for an event before they are asked anew. It is
	// less than peerTimeout: one that says nothing for longer hangs.
	awaitRound = time.Second
	// awaitSlack is how much longer a round takes, for answers to arrive.
	awaitSlack = time.Second
)

// Await implements [query.Projection]: the event may be with any worker, and move from
// one to another. A worker that cannot be asked may be back in time, so it ends
// nothing.
func (c *clusterReader) Await(ctx context.Context, e query.Sought, wait time.Duration) (query.Outcome, error) {
	deadline := time.Now().Add(wait)
	for {
		_, moved := c.peers.control.Hosts()
		out, err := c.outcomeOfAll(ctx, e, 0, nil)
		left := time.Until(deadline)
		if err != nil || out.Final() || left <= 0 {
			return out, err
		}
		// One that knows more ends the round. What counts is then what all know, for
		// pipelines may have dropped a copy of what is applied elsewhere.
		left = min(left, awaitRound)
		round, cancel := context.WithTimeout(ctx, left+awaitSlack)
		_, _ = c.outcomeOfAll(round, e, left, moved) // it is asked for again
		cancel()
	}
}

// outcomeOfAll returns the word of those of all workers that counts most. If they are to
// wait, the first final one is enough, and that partitions have moved ends it.
func (c *clusterReader) outcomeOfAll(ctx context.Context, e query.Sought, wait time.Duration, moved <-chan struct{}) (query.Outcome, error) {
	type answer struct {
		query.Outcome
		err error
	}
	asking, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	have := c.local.Answered()
	others := c.holdersExcept(have)
	answers := make(chan answer, len(others)+1)
	work.Go(func() {
		out, err := c.local.Await(asking, e, wait)
		answers <- answer{out, err}
	})
	for _, h := range others {
		for _, p := range h.partitions {
			have[p] = true
		}
		work.Go(func() {
			out, err := c.askOutcome(asking, h, e, wait)
			answers <- answer{out, err}
		})
	}
	best, noHistory := query.Outcome{State: query.Pending}, false
	var mute []string // why somebody cannot be asked
	for range len(others) + 1 {
		select {
		case a := <-answers:
			switch {
			case errors.Is(a.err, query.ErrNoHistory):
				noHistory = true
			case a.err != nil:
				mute = append(mute, a.err.Error())
			case weight(&a.Outcome) > weight(&best):
				best = a.Outcome
			}
		case <-moved:
			return best, nil
		case <-ctx.Done():
			return best, ctx.Err()
		}
		if best.State == query.Applied || wait > 0 && best.Final() {
			return best, nil
		}
	}
	switch {
	case best.State != query.Pending:
	case noHistory:
		return best, query.ErrNoHistory
	default:
		absent := c.absent(have)
		for _, p := range slices.Sorted(maps.Keys(absent)) {
			mute = append(mute, fmt.Sprintf("partition %d of %s: %s", p, c.local.Topic(), absent[p]))
		}
		where := "by any partition: it may be on its way"
		if len(mute) > 0 {
			where = "by the partitions that can be asked: it may be on its way, or stand in another (" + strings.Join(mute, "; ") + ")"
		}
		best.Detail = c.local.Unseen(e.ID, where)
	}
	return best, nil
}

// weight says which of what is known of an event counts: that it was applied, then what
// the projection says, then what pipelines on the way say, then that its place was
// passed, then what may yet change.
func weight(o *query.Outcome) int {
	switch {
	case o.State == query.Applied:
		return 5
	case o.State == query.Pending:
		return 0
	case o.Open:
		return 1
	case o.State == query.Passed:
		return 2
	case o.Pipeline != "":
		return 3
	}
	return 4
}
