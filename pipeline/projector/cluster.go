package projector

import (
	"bytes"
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
	"strings"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// What a worker answers for all workers is of all partitions or an error: those
// that it has itself, and those of the others, which it asks.

// holder is another worker that answers for partitions.
type holder struct {
	instance, address string
	partitions        []int32
}

func (h *holder) String() string { return fmt.Sprintf("worker %s at %s", h.instance, h.address) }

// holders returns who answers for the partitions that this worker does not have:
// the last to have said so.
func (c *clusterReader) holders() (all []holder) { return c.holdersBut(c.Here()) }

func (c *clusterReader) holdersBut(here map[int32]bool) (all []holder) {
	state, _ := c.v.control.Hosts()
	owners := state.Owners(c.Group, c.Topic)
	for p := range int32(c.NumPartitions) {
		instance, ok := owners[p]
		if here[p] || !ok || instance == c.v.w.Flags.Instance {
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

// all returns the positions of all partitions from those that workers told, or
// ErrElsewhere if some are not there: a part is no answer.
func (c *clusterReader) all(at []query.Position) ([]query.Position, error) {
	if at = furthest(at); len(at) == c.NumPartitions {
		return at, nil
	}
	var missing []string
	for p := range int32(c.NumPartitions) {
		if !slices.ContainsFunc(at, func(a query.Position) bool { return a.Partition == p }) {
			missing = append(missing, strconv.Itoa(int(p)))
		}
	}
	return nil, fmt.Errorf("of %d partitions of %s, no worker that is ready has %s: %w", c.NumPartitions, c.Topic, strings.Join(missing, ", "), query.ErrElsewhere)
}

// furthest returns one position of each partition: one that changes hands may be with
// two workers.
func furthest(at []query.Position) []query.Position {
	slices.SortFunc(at, func(a, b query.Position) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(b.Offset, a.Offset))
	})
	return slices.CompactFunc(at, func(a, b query.Position) bool { return a.Partition == b.Partition })
}

// peerPatience is how long another worker gets to begin an answer.
const peerPatience = 5 * time.Second

// askHolder asks another worker for what it has of the projection, and reads the
// answer. If it cannot be reached, or does not answer, that is ErrElsewhere.
func (c *clusterReader) askHolder(ctx context.Context, h holder, what string, values url.Values, read func(io.Reader) error) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	path := fmt.Sprintf("http://%s/internal/v1/%s/%s/%d?%s", h.address, what, url.PathEscape(c.w.name), c.w.Version, values.Encode())
	req, err := http.NewRequestWithContext(asking, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	late := time.AfterFunc(peerPatience, cancel)
	resp, err := c.v.peers.RoundTrip(req)
	if err == nil {
		defer resp.Body.Close()
		if late.Stop() {
			err = statusError(resp)
		} else {
			err = context.Canceled
		}
		if err == nil {
			err = read(resp.Body)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return nil
	case asking.Err() != nil:
		err = fmt.Errorf("no answer within %s", peerPatience)
	}
	return fmt.Errorf("partitions %s of %s are with %v: %w: %w", numbers(h.partitions), c.Topic, &h, err, query.ErrElsewhere)
}

func numbers(ns []int32) string {
	texts := make([]string, len(ns))
	for i, n := range ns {
		texts[i] = strconv.Itoa(int(n))
	}
	return strings.Join(texts, ", ")
}

// statusError returns an error unless an answer is 200.
func statusError(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // it is only for the message
	return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
}

// reader returns what reads a version here, nil if nothing does.
func (v *versions) reader(name string, version int) *projection.Reader {
	if v.replica {
		return nil // owners are asked
	}
	for _, l := range v.all() {
		for i, wanted := range l.wanted {
			if wanted.name == name && wanted.Version == version {
				return l.readers[i]
			}
		}
	}
	return nil
}

// serveReader has a request of another worker answered from a version.
func (v *versions) serveReader(answer func(r *projection.Reader, w http.ResponseWriter, in *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		number, err := strconv.Atoi(in.PathValue("version"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r := v.reader(in.PathValue("name"), number)
		if r == nil {
			http.Error(w, "this worker does not have it", http.StatusMisdirectedRequest)
			return
		}
		if err := answer(r, w, in); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// askPages asks the other workers for their part of a list.
func askPages[T any](ctx context.Context, c *clusterReader, what string, q projection.PageQuestion) (parts []T, err error) {
	page, err := projection.JSONParameter(q)
	if err != nil {
		return nil, err
	}
	for _, h := range c.holders() {
		var part T
		if err := c.askHolder(ctx, h, what, url.Values{"page": {page}}, func(body io.Reader) error { return json.NewDecoder(body).Decode(&part) }); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// Events implements [query.Projection]: it merges the workers.
func (c *clusterReader) Events(ctx context.Context, typ string, before *query.EventCursor, limit int) ([]query.Event, []query.Position, error) {
	events, at, err := c.Reader.Events(ctx, typ, before, limit)
	if err != nil {
		return nil, nil, err
	}
	parts, err := askPages[projection.EventsPart](ctx, c, "events", projection.PageQuestion{Type: typ, From: before, Limit: limit})
	if err != nil {
		return nil, nil, err
	}
	schemas := map[string]*codec.Schema{}
	for _, t := range c.EventTypes {
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
	if at, err = c.all(at); err != nil {
		return nil, nil, err
	}
	place := func(e query.Event) query.EventCursor {
		return query.EventCursor{Time: e.Time.UnixMicro(), Partition: e.Partition, Offset: e.Offset}
	}
	slices.SortFunc(events, func(a, b query.Event) int { return place(b).Compare(place(a)) })
	events = slices.CompactFunc(events, func(a, b query.Event) bool { return place(a) == place(b) })
	return events[:min(limit, len(events))], at, nil
}

// Blocked implements [query.Projection]: it merges the workers.
func (c *clusterReader) Blocked(ctx context.Context, after *query.EventCursor, limit int) ([]query.BlockedAggregate, error) {
	items, at := c.BlockedPage(after, limit)
	parts, err := askPages[projection.BlockedPart](ctx, c, "blocked", projection.PageQuestion{From: after, Limit: limit})
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		items, at = append(items, part.Items...), append(at, part.At...)
	}
	if _, err := c.all(at); err != nil {
		return nil, err
	}
	slices.SortFunc(items, func(a, b query.BlockedAggregate) int { return a.Cursor().Compare(b.Cursor()) })
	items = slices.CompactFunc(items, func(a, b query.BlockedAggregate) bool { return a.Cursor() == b.Cursor() })
	return items[:min(limit, len(items))], nil
}

// releasePatience is how long another worker gets for a release, which reads the
// log.
const releasePatience = time.Minute

// askRelease asks another worker to release. Nothing of that is tried twice: if it
// is not known whether it was done, that is ErrUnanswered.
func (c *clusterReader) askRelease(ctx context.Context, h holder, id string, skip bool) (out projection.ReleasedPart, err error) {
	ctx, cancel := context.WithTimeout(ctx, releasePatience)
	defer cancel()
	values := url.Values{"id": {id}, "skip": {strconv.FormatBool(skip)}}
	path := fmt.Sprintf("http://%s/internal/v1/release/%s/%d?%s", h.address, url.PathEscape(c.w.name), c.w.Version, values.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, nil)
	if err != nil {
		return out, err
	}
	// A connection of its own: one that was kept may turn out to be closed when
	// the request is on its way.
	once := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: peerPatience}).DialContext}
	resp, err := once.RoundTrip(req)
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return out, fmt.Errorf("partitions %s of %s are with %v: %w: %w", numbers(h.partitions), c.Topic, &h, err, query.ErrElsewhere)
	case err == nil:
		defer resp.Body.Close()
		switch bad := statusError(resp); {
		case resp.StatusCode == http.StatusMisdirectedRequest:
			return out, fmt.Errorf("%v: %w: %w", &h, bad, query.ErrElsewhere)
		case bad != nil:
			return out, fmt.Errorf("%v could not release %q: %w", &h, id, bad)
		}
		err = json.NewDecoder(resp.Body).Decode(&out)
	}
	if err != nil {
		return out, fmt.Errorf("%v was asked to release %q: %w: %w; 'projector blocked %s' shows", &h, id, err, query.ErrUnanswered, c.w.name)
	}
	return out, nil
}

// releaseAgain is how soon a release looks again for who has the aggregate.
const releaseAgain = 100 * time.Millisecond

// Release implements [query.Projection]: it finds the worker that has the
// aggregate as blocked, and waits for partitions that are on their way from one
// worker to another.
func (c *clusterReader) Release(ctx context.Context, id string, skip bool) (query.Released, error) {
	deadline := time.NewTimer(forwardWait)
	defer deadline.Stop()
	for {
		out, err := c.releaseAnywhere(ctx, id, skip)
		if !errors.Is(err, query.ErrElsewhere) {
			return out, err
		}
		again := time.NewTimer(releaseAgain)
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

func (c *clusterReader) releaseAnywhere(ctx context.Context, id string, skip bool) (query.Released, error) {
	// It is blocked where the event stands that cannot be folded. That is where it
	// belongs, as a rule; but the event may be the trouble because it is not.
	home := kafka.PartitionOf([]byte(id), c.NumPartitions)
	others := c.holders()
	if c.v.replica {
		others = c.holdersBut(nil)
	}
	slices.SortStableFunc(others, func(a, b holder) int {
		return cmp.Compare(b2i(slices.Contains(b.partitions, home)), b2i(slices.Contains(a.partitions, home)))
	})
	var part projection.ReleasedPart
	var err error
	if !c.v.replica {
		part, err = c.ReleasePart(ctx, id, skip)
	}
	known, at := part.Known, part.At
	for i := 0; err == nil && part.Released == nil && part.Busy == "" && i < len(others); i++ {
		part, err = c.askRelease(ctx, others[i], id, skip)
		known, at = known || part.Known, append(at, part.At...)
	}
	switch {
	case err != nil:
		return query.Released{}, err
	case part.Busy != "":
		return query.Released{}, fmt.Errorf("%s: %w", part.Busy, query.ErrBusy)
	case part.Released != nil:
		return *part.Released, nil
	}
	if _, err := c.all(at); err != nil {
		if c.v.replica {
			err = fmt.Errorf("this worker is a replica and changes nothing, so a worker of the group has to: %w", err)
		}
		return query.Released{}, err
	}
	if known {
		return query.Released{}, query.ErrNotBlocked
	}
	return query.Released{}, query.ErrNotFound
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
