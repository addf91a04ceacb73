package query

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
)

// The feed is a stream of server-sent events of four kinds:
//
//	snapshot  the state of an aggregate after one event, or after several events of
//	          one batch
//	frontier  the position of each partition: all changes below it were sent. Sent
//	          first, and whenever the feed was quiet for a while
//	stalled   the partitions that deliver no changes at the moment, and the reasons.
//	          Frontiers omit them until they resume. Sent when a stall begins, and
//	          repeated while it lasts
//	end       the reason why the feed ends; the client should connect again
//
// The message id holds the next offset to read in every partition, for example
// "0-1200,3-57". Every worker accepts it.
//
// A snapshot is sent after its events are committed. Snapshots of one partition
// arrive in the order of the log. Each one has an id, with one exception: aggregates
// that changed before the connection may be sent in another order, and then only the
// last of them has an id. So a client that reconnects with the last id it saw misses
// nothing, and receives nothing again that it received up to that id. For an
// aggregate that changed while the client was away, only the latest state is sent.
const (
	kindSnapshot = "snapshot"
	kindFrontier = "frontier"
	kindStalled  = "stalled"
	kindEnd      = "end"
)

const (
	feedBeat  = 5 * time.Second  // minimum time between frontiers
	feedWrite = 10 * time.Second // timeout of a write
)

type feedSnapshot struct {
	Projection string `json:"projection"`
	Partition  int32  `json:"partition"`
	item
}

type feedFrontier struct {
	made
	Partitions []Position `json:"partitions"`
}

type feedStalled struct {
	made
	Partitions []Stall `json:"partitions"`
}

type feedEnd struct {
	Reason string `json:"reason" doc:"One of moved, slow, ahead, stopping and failed."`
	Detail string `json:"detail"`
}

// feedStart returns the requested starting point, or writes the problem and returns
// false.
func (a *api) feedStart(w http.ResponseWriter, r *http.Request) (start Start, ok bool) {
	start.ID = r.URL.Query().Get("id")
	switch from := r.URL.Query().Get("from"); from {
	case "", "now":
	case "beginning":
		start.Beginning = true
	default:
		a.problem(w, http.StatusBadRequest, "from=%s: want now or beginning", from)
		return start, false
	}
	if text := r.Header.Get("Last-Event-ID"); text != "" {
		if start.From, ok = parseFeedID(text); !ok {
			a.problem(w, http.StatusBadRequest, "Last-Event-ID: %.100s: want a message id of this feed, such as 0-1200,3-57", text)
			return start, false
		}
		start.Beginning = false
	}
	return start, true
}

// feed streams changes until the request ends or the feed cannot continue.
func (a *api) feed(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	d := p.Describe()
	var keep *filter
	if text := r.URL.Query().Get("filter"); text != "" {
		if keep = a.filter(w, d, text); keep == nil {
			return
		}
	}
	start, ok := a.feedStart(w, r)
	if !ok {
		return
	}
	select {
	case a.following <- struct{}{}:
		defer func() { <-a.following }()
	default:
		w.Header().Set("Retry-After", "5")
		a.problem(w, http.StatusServiceUnavailable, "%d feeds are open already, which is the limit of this worker: --feeds raises it", cap(a.following))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy must not buffer the stream
	if r.Method == http.MethodHead {
		return
	}
	s := &stream{w: w, ctl: http.NewResponseController(w), d: d, keep: keep, frontier: map[int32]Position{}, next: map[int32]int64{}}
	s.buf.WriteString("retry: 1000\n\n")
	err := p.Follow(r.Context(), start, s.send)
	if s.broken != nil {
		return // the client disconnected or does not read
	}
	if !s.begun && err != nil {
		h.Del("X-Accel-Buffering")
		a.fail(w, r, err)
		return
	}
	end := feedEnd{Reason: "failed", Detail: fmt.Sprint(err)}
	switch {
	case errors.Is(err, ErrMoved), errors.Is(err, ErrElsewhere):
		end.Reason = "moved"
	case errors.Is(err, ErrSlow):
		end.Reason = "slow"
	case errors.Is(err, ErrAhead):
		end.Reason = "ahead"
	case errors.Is(err, context.Canceled), err == nil:
		end = feedEnd{"stopping", "the worker is stopping"}
	default:
		a.log.Error("a feed failed", "projection", d.Name, "err", err)
	}
	_ = s.message(kindEnd, "", end)
	_ = s.flush() // an error means that the client disconnected
}

// stream writes the messages of one feed. The goroutine of the request owns it.
type stream struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	d    Description
	keep *filter

	frontier  map[int32]Position
	next      map[int32]int64 // next offset to read, by partition
	stalled   []Stall
	stallSent time.Time // time of the last stalled message
	beat      time.Time // time of the last frontier
	buf       bytes.Buffer
	begun     bool  // something was written
	broken    error // from writing to the client
}

// send writes the messages for some changes. It is the callback of
// [Projection.Follow].
func (s *stream) send(c Changes) error {
	if c.Stalled != nil {
		return s.stall(c.Stalled)
	}
	if err := s.snapshots(c); err != nil {
		return err
	}
	if c.PositionOnly && time.Since(s.beat) >= feedBeat {
		if err := s.sendFrontier(); err != nil {
			return err
		}
	}
	return s.flush()
}

// snapshots buffers a snapshot message for each changed aggregate that passes the
// filter, and advances the position to c.
func (s *stream) snapshots(c Changes) error {
	// Offset in buf of the last snapshot if it was written without an id. Its id is
	// known only after the loop, when the position is advanced.
	pending := -1
	for i := range c.Aggregates {
		g := &c.Aggregates[i]
		if c.Next != nil {
			s.next[c.At.Partition] = c.Next[i]
		}
		if s.keep != nil {
			switch ok, err := s.keep.match(g); {
			case err != nil && pipeline.ClassOf(err) != pipeline.ClassReject:
				return fmt.Errorf("filter failed for aggregate %q: %w", g.ID, err)
			case !ok: // or the filter has no value for this state
				continue
			}
		}
		it, err := newItem(s.d, *g)
		if err != nil {
			return err
		}
		id := ""
		if c.Next != nil && i < len(c.Aggregates)-1 {
			id = s.id()
		}
		if pending = s.buf.Len(); id != "" {
			pending = -1
		}
		if err := s.message(kindSnapshot, id, feedSnapshot{s.d.Name, c.At.Partition, it}); err != nil {
			return err
		}
	}
	if !c.More {
		s.frontier[c.At.Partition] = c.At
		s.next[c.At.Partition] = c.At.Offset
	}
	if pending >= 0 && (!c.More || c.Next != nil) {
		last := bytes.Clone(s.buf.Bytes()[pending:])
		s.buf.Truncate(pending)
		fmt.Fprintf(&s.buf, "id: %s\n", s.id())
		s.buf.Write(last)
	}
	return nil
}

// sendFrontier buffers a frontier of all partitions that are not stalled.
func (s *stream) sendFrontier() error {
	s.beat = time.Now()
	all := []Position{}
	for _, n := range slices.Sorted(maps.Keys(s.frontier)) {
		if !slices.ContainsFunc(s.stalled, func(x Stall) bool { return x.Partition == n }) {
			all = append(all, s.frontier[n])
		}
	}
	return s.message(kindFrontier, s.id(), feedFrontier{made{s.d.Name, s.d.Version}, all})
}

// stall sends the stalled partitions if they changed or the last message is older
// than feedBeat. A change also makes the next frontier due immediately, so the client
// soon sees which partitions resumed.
func (s *stream) stall(now []Stall) error {
	of := func(a, b Stall) bool { return a.Partition == b.Partition }
	same := slices.EqualFunc(now, s.stalled, of)
	if s.stalled = slices.Clone(now); !same {
		s.beat = time.Time{}
	}
	if len(now) == 0 || same && time.Since(s.stallSent) < feedBeat {
		return nil
	}
	s.stallSent = time.Now()
	if err := s.message(kindStalled, "", feedStalled{made{s.d.Name, s.d.Version}, now}); err != nil {
		return err
	}
	return s.flush()
}

// message buffers a message. id may be "".
func (s *stream) message(kind, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if id != "" {
		fmt.Fprintf(&s.buf, "id: %s\n", id)
	}
	fmt.Fprintf(&s.buf, "event: %s\ndata: %s\n\n", kind, data)
	return nil
}

// flush writes the buffered messages to the client.
func (s *stream) flush() error {
	if s.buf.Len() == 0 {
		return nil
	}
	// The ResponseWriter of a test does not support deadlines.
	if err := s.ctl.SetWriteDeadline(time.Now().Add(feedWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.broken = err
		return err
	}
	s.begun = true
	_, err := s.w.Write(s.buf.Bytes())
	s.buf.Reset()
	if err == nil {
		err = s.ctl.Flush()
	}
	s.broken = err
	return err
}

// id returns the current message id.
func (s *stream) id() string { return feedID(s.next) }

// feedID encodes the next offset to read of each partition as a message id.
func feedID(at map[int32]int64) string {
	var text []byte
	for _, n := range slices.Sorted(maps.Keys(at)) {
		if len(text) > 0 {
			text = append(text, ',')
		}
		text = append(strconv.AppendInt(text, int64(n), 10), '-')
		text = strconv.AppendInt(text, at[n], 10)
	}
	return string(text)
}

// parseFeedID is the inverse of feedID. It returns false if text is no message id.
func parseFeedID(text string) (map[int32]int64, bool) {
	at := map[int32]int64{}
	for _, part := range strings.Split(text, ",") {
		left, right, ok := strings.Cut(part, "-")
		n, err := strconv.ParseInt(left, 10, 32)
		o, err2 := strconv.ParseInt(right, 10, 64)
		if !ok || err != nil || err2 != nil || n < 0 || o < 0 {
			return nil, false
		}
		at[int32(n)] = o
	}
	return at, true
}
