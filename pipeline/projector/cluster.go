package projector

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/server/dial"
)

// clusterReader answers for the partitions of all workers: it merges the answers of this
// worker and of the others, which it asks. An answer covers all partitions or is an
// error. It is a [query.Projection]; its fields are immutable.
//
// A question about one aggregate is answered from this worker's partitions, because the
// forwarder sends it to the worker that has the aggregate.
type clusterReader struct {
	local   *reader.Reader
	name    string // of the projection
	version int
	follows bool // other workers own all partitions
	peers   *peers
	roster  *roster
}

var _ query.Projection = (*clusterReader)(nil)

// Describe implements [query.Projection].
func (c *clusterReader) Describe() query.Description { return c.local.Describe() }

// Partitions implements [query.Projection].
func (c *clusterReader) Partitions() []query.Position { return c.local.Partitions() }

// Get implements [query.Projection].
func (c *clusterReader) Get(ctx context.Context, id string) (query.Aggregate, error) {
	return c.local.Get(ctx, id)
}

// GetAt implements [query.Projection].
func (c *clusterReader) GetAt(ctx context.Context, id string, at query.At) (query.Aggregate, error) {
	return c.local.GetAt(ctx, id, at)
}

// History implements [query.Projection].
func (c *clusterReader) History(ctx context.Context, id string, before int64, limit int) ([]query.Event, error) {
	return c.local.History(ctx, id, before, limit)
}

// Why implements [query.Projection].
func (c *clusterReader) Why(ctx context.Context, id string) (query.Why, error) {
	return c.local.Why(ctx, id)
}

// Diff implements [query.Projection].
func (c *clusterReader) Diff(ctx context.Context, id string, from, to int64) (a, b query.Aggregate, fields []string, err error) {
	return c.local.Diff(ctx, id, from, to)
}

// Types implements [query.Projection].
func (c *clusterReader) Types() []*codec.Schema { return c.local.Types() }

// Event implements [query.Projection].
func (c *clusterReader) Event(ctx context.Context, id, aggregate string) (query.Event, error) {
	return c.local.Event(ctx, id, aggregate)
}

// Outcome implements [query.Projection].
func (c *clusterReader) Outcome(ctx context.Context, e query.EventRef) (query.Outcome, error) {
	return c.local.Outcome(ctx, e)
}

// Changed implements [query.Projection].
func (c *clusterReader) Changed() <-chan struct{} { return c.local.Changed() }

// holders returns the workers that answer for the partitions that this worker does not
// have: of each partition, the last one to have announced it.
func (c *clusterReader) holders() (all []holder) { return c.holdersExcept(c.local.Here()) }

// holdersExcept returns the workers that answer for all partitions but some.
func (c *clusterReader) holdersExcept(these map[int32]bool) (all []holder) {
	state, _ := c.peers.control.Workers()
	owners := state.Owners(c.local.Group(), c.local.Topic())
	for p := range int32(c.local.NumPartitions()) {
		instance, ok := owners[p]
		if these[p] || !ok || instance == c.peers.instance {
			continue
		}
		i := slices.IndexFunc(all, func(h holder) bool { return h.instance == instance })
		if i < 0 {
			i, all = len(all), append(all, holder{instance: instance, address: state.Workers[instance].Address})
		}
		all[i].partitions = append(all[i].partitions, p)
	}
	return all
}

// complete returns the positions of all partitions from those that workers reported, or
// ErrElsewhere if some are missing.
func (c *clusterReader) complete(at []query.Position) ([]query.Position, error) {
	if at = furthest(at); len(at) == c.local.NumPartitions() {
		return at, nil
	}
	var missing []int32
	for p := range int32(c.local.NumPartitions()) {
		if !slices.ContainsFunc(at, func(a query.Position) bool { return a.Partition == p }) {
			missing = append(missing, p)
		}
	}
	return nil, fmt.Errorf("of %d partitions of %s, no worker that is ready has %s: %w", c.local.NumPartitions(), c.local.Topic(), numbers(missing), query.ErrElsewhere)
}

// path returns the path of a request about the projection to another worker.
func (c *clusterReader) path(what string) string {
	return fmt.Sprintf("/internal/v1/%s/%s/%d", what, url.PathEscape(c.name), c.version)
}

// fromHolder asks another worker for its part of an answer. It fails with ErrElsewhere
// if the worker cannot be reached or does not answer.
func (c *clusterReader) fromHolder(ctx context.Context, h holder, what string, values url.Values, read func(io.Reader) error) error {
	err := c.peers.get(ctx, h.address, c.path(what), values, read)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return c.unreachable(&h, err)
}

// unreachable returns the error for partitions whose worker does not answer.
func (c *clusterReader) unreachable(h *holder, err error) error {
	return fmt.Errorf("partitions %s of %s are with %v: %w: %w", numbers(h.partitions), c.local.Topic(), h, err, query.ErrElsewhere)
}

// pages asks the other workers for their parts of a list.
func pages[T any](ctx context.Context, c *clusterReader, what string, q reader.PageQuestion) (parts []T, err error) {
	page, err := reader.Parameter(q)
	if err != nil {
		return nil, err
	}
	for _, h := range c.holders() {
		var part T
		if err := c.fromHolder(ctx, h, what, url.Values{"page": {page}}, func(body io.Reader) error { return json.NewDecoder(body).Decode(&part) }); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// Events implements [query.Projection]: it merges the workers.
func (c *clusterReader) Events(ctx context.Context, typ string, before *query.EventCursor, limit int) ([]query.Event, []query.Position, error) {
	events, at, err := c.local.Events(ctx, typ, before, limit)
	if err != nil {
		return nil, nil, err
	}
	parts, err := pages[reader.EventsPart](ctx, c, "events", reader.PageQuestion{Type: typ, From: before, Limit: limit})
	if err != nil {
		return nil, nil, err
	}
	schemas := map[string]*codec.Schema{}
	for _, t := range c.local.EventTypes() {
		schemas[t.Name()] = t
	}
	for _, part := range parts {
		at = append(at, part.At...)
		for _, e := range part.Events {
			t := schemas[e.Type]
			if t == nil {
				return nil, nil, fmt.Errorf("another worker has an event of type %q, which this one does not know: are their topologies the same?", e.Type)
			}
			e.Event.Type = t
			events = append(events, e.Event)
		}
	}
	if at, err = c.complete(at); err != nil {
		return nil, nil, err
	}
	cursor := func(e query.Event) query.EventCursor {
		return query.EventCursor{Time: e.Time.UnixMicro(), Partition: e.Partition, Offset: e.Offset}
	}
	slices.SortFunc(events, func(a, b query.Event) int { return cursor(b).Compare(cursor(a)) })
	events = slices.CompactFunc(events, func(a, b query.Event) bool { return cursor(a) == cursor(b) })
	return events[:min(limit, len(events))], at, nil
}

// Blocked implements [query.Projection]: it merges the workers.
func (c *clusterReader) Blocked(ctx context.Context, after *query.EventCursor, limit int) ([]query.BlockedAggregate, error) {
	items, at := c.local.BlockedPage(after, limit)
	parts, err := pages[reader.BlockedPart](ctx, c, "blocked", reader.PageQuestion{From: after, Limit: limit})
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		items, at = append(items, part.Items...), append(at, part.At...)
	}
	if _, err := c.complete(at); err != nil {
		return nil, err
	}
	slices.SortFunc(items, func(a, b query.BlockedAggregate) int { return a.Cursor().Compare(b.Cursor()) })
	items = slices.CompactFunc(items, func(a, b query.BlockedAggregate) bool { return a.Cursor() == b.Cursor() })
	return items[:min(limit, len(items))], nil
}

// releaseTimeout is how long another worker gets for a release, which reads the log.
const releaseTimeout = time.Minute

// releaseAt asks another worker for a release. Such a request is not sent twice: if its
// result is unknown, the error is ErrUnanswered.
func (c *clusterReader) releaseAt(ctx context.Context, h holder, id string, skip bool) (out reader.ReleasedPart, err error) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	values := url.Values{"id": {id}, "skip": {strconv.FormatBool(skip)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.peers.caller.URL(h.address, c.path("release"))+"?"+values.Encode(), nil)
	if err != nil {
		return out, err
	}
	// A connection of its own: one that was kept may turn out to be closed when the
	// request is on its way.
	once := c.peers.caller.Transport(&http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: peerTimeout}).DialContext})
	resp, err := once.RoundTrip(req)
	var failed *net.OpError
	switch {
	case errors.As(err, &failed) && failed.Op == "dial":
		return out, c.unreachable(&h, err)
	case err == nil:
		defer resp.Body.Close()
		switch bad := dial.StatusError(resp); {
		case resp.StatusCode == http.StatusMisdirectedRequest:
			return out, fmt.Errorf("%v: %w: %w", &h, bad, query.ErrElsewhere)
		case bad != nil:
			return out, fmt.Errorf("%v could not release %q: %w", &h, id, bad)
		}
		err = json.NewDecoder(resp.Body).Decode(&out)
	}
	if err != nil {
		return out, fmt.Errorf("%v was asked to release %q: %w: %w; check with 'projector blocked %s'", &h, id, err, query.ErrUnanswered, c.name)
	}
	return out, nil
}

// releaseRetry is the delay before a release looks again for the worker that has the
// aggregate.
const releaseRetry = 100 * time.Millisecond

// Release implements [query.Projection]: it finds the worker in which the aggregate is
// blocked, and waits for partitions that move from one worker to another.
func (c *clusterReader) Release(ctx context.Context, id string, skip bool) (query.ReleaseResult, error) {
	deadline := time.NewTimer(forwardWait)
	defer deadline.Stop()
	for {
		out, err := c.releaseAnywhere(ctx, id, skip)
		if !errors.Is(err, query.ErrElsewhere) {
			return out, err
		}
		again := time.NewTimer(releaseRetry)
		select {
		case <-again.C:
		case <-deadline.C:
			again.Stop()
			return out, err
		case <-ctx.Done():
			again.Stop()
			return out, ctx.Err()
		}
	}
}

func (c *clusterReader) releaseAnywhere(ctx context.Context, id string, skip bool) (query.ReleaseResult, error) {
	var part reader.ReleasedPart
	var err error
	if !c.follows {
		part, err = c.local.ReleasePart(ctx, id, skip)
	}
	known, at := part.Known, part.At
	others := c.releaseHolders(id)
	for i := 0; err == nil && part.Released == nil && part.Busy == "" && i < len(others); i++ {
		part, err = c.releaseAt(ctx, others[i], id, skip)
		known, at = known || part.Known, append(at, part.At...)
	}
	switch {
	case err != nil:
		return query.ReleaseResult{}, err
	case part.Busy != "":
		return query.ReleaseResult{}, fmt.Errorf("%s: %w", part.Busy, query.ErrBusy)
	case part.Released != nil:
		return *part.Released, nil
	}
	if _, err := c.complete(at); err != nil {
		if c.follows {
			err = fmt.Errorf("this worker is a replica, or of a later release, and changes nothing, so a worker of the group has to: %w", err)
		}
		return query.ReleaseResult{}, err
	}
	if known {
		return query.ReleaseResult{}, query.ErrNotBlocked
	}
	return query.ReleaseResult{}, query.ErrNotFound
}

// releaseHolders returns the other workers in which an aggregate may be blocked, the
// likeliest first. It is blocked in the partition of the event that cannot be folded,
// which usually is the partition of the aggregate's id; but the event may be blocked
// because it is not.
func (c *clusterReader) releaseHolders(id string) []holder {
	others := c.holders()
	if c.follows {
		others = c.holdersExcept(nil)
	}
	home := c.local.Home(id)
	rank := func(h holder) int {
		if slices.Contains(h.partitions, home) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(others, func(a, b holder) int { return cmp.Compare(rank(a), rank(b)) })
	return others
}
