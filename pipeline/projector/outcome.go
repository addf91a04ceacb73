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

// absent returns, for each partition that is not in have, why no worker answers for it.
func (c *clusterReader) absent(have map[int32]bool) map[int32]string {
	out := map[int32]string{}
	state, _ := c.peers.control.Workers()
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

// outcomeAt asks another worker for the outcome of an event. The other worker waits up
// to wait for a final one.
func (c *clusterReader) outcomeAt(ctx context.Context, h holder, e query.EventRef, wait time.Duration) (query.Outcome, error) {
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
	// awaitRound is how long workers wait for an event before they are asked again. It is
	// less than peerTimeout, because a worker that is silent for longer hangs.
	awaitRound = time.Second
	// awaitSlack is the additional time of a round in which answers arrive.
	awaitSlack = time.Second
)

// Await implements [query.Projection]: the event may be with any worker, and move from
// one to another. A worker that cannot be reached does not end the wait, because it may
// be back in time.
func (c *clusterReader) Await(ctx context.Context, e query.EventRef, wait time.Duration) (query.Outcome, error) {
	deadline := time.Now().Add(wait)
	for {
		_, moved := c.peers.control.Workers()
		out, err := c.outcomeOfAll(ctx, e, 0, nil)
		left := time.Until(deadline)
		if err != nil || out.Final() || left <= 0 {
			return out, err
		}
		// A worker that knows more ends the round. Then all workers are asked again,
		// because a pipeline may have dropped a copy of an event that is applied elsewhere.
		left = min(left, awaitRound)
		round, cancel := context.WithTimeout(ctx, left+awaitSlack)
		_, _ = c.outcomeOfAll(round, e, left, moved)
		cancel()
	}
}

// outcomeOfAll returns the outcome with the highest rank of all workers. With a wait, it
// returns the first final outcome, or returns early when moved is closed, which means
// that partitions have moved.
func (c *clusterReader) outcomeOfAll(ctx context.Context, e query.EventRef, wait time.Duration, moved <-chan struct{}) (query.Outcome, error) {
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
			out, err := c.outcomeAt(asking, h, e, wait)
			answers <- answer{out, err}
		})
	}
	best, noHistory := query.Outcome{State: query.Pending}, false
	var failures []string // why some partitions are not covered
	for range len(others) + 1 {
		select {
		case a := <-answers:
			switch {
			case errors.Is(a.err, query.ErrNoHistory):
				noHistory = true
			case a.err != nil:
				failures = append(failures, a.err.Error())
			case rank(&a.Outcome) > rank(&best):
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
			failures = append(failures, fmt.Sprintf("partition %d of %s: %s", p, c.local.Topic(), absent[p]))
		}
		where := "by any partition: it may be on its way"
		if len(failures) > 0 {
			where = "by the partitions that can be asked: it may be on its way, or in another one (" + strings.Join(failures, "; ") + ")"
		}
		best.Detail = c.local.Unseen(e.ID, where)
	}
	return best, nil
}

// rank orders outcomes of the same event from several workers: that it was applied, then
// what the projection knows, then what pipelines before it know, then that its position
// was passed, then outcomes that may change.
func rank(o *query.Outcome) int {
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
