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
)

// The feed is a stream of server-sent events of four kinds:
//
//	snapshot  an aggregate as an event, or several of one batch, have left it
//	frontier  how far each partition is: nothing below is still to come. It comes
//	          first, and whenever it was quiet for a while
//	stalled   of which partitions nothing comes for now, and why: they are not in
//	          frontiers until it does. It comes when that begins, and again and
//	          again
//	end       why nothing more follows; connect again
//
// The id of a message says from which offset of which partition to go on, of all
// partitions: "0-1200,3-57". It means the same at every worker. Snapshots are sent
// when what they are made of is committed, of each partition in the order of the
// log. Each says where to go on after it, but those from before the connection
// that are not told in that order; then the last of them does. So a reader who
// comes back with the last id that it saw misses nothing, and sees nothing again
// that came up to there. Of an aggregate that changed while nobody was connected,
// the last state is sent.
const (
	kindSnapshot = "snapshot"
	kindFrontier = "frontier"
	kindStalled  = "stalled"
	kindEnd      = "end"
)

const (
	feedBeat  = 5 * time.Second  // between frontiers, at least
	feedWrite = 10 * time.Second // for a write, at most
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
	Reason string `json:"reason" doc:"moved, slow, ahead, stopping or failed."`
	Detail string `json:"detail"`
}

// feed streams changes.
func (a *api) feed(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	d := p.Describe()
	var keep *filter
	if text := r.FormValue("filter"); text != "" {
		if keep = a.filter(w, d, text); keep == nil {
			return
		}
	}
	start := Start{ID: r.FormValue("id")}
	switch from := r.FormValue("from"); from {
	case "", "now":
	case "beginning":
		start.Beginning = true
	default:
		a.problem(w, http.StatusBadRequest, "from=%s: want now or beginning", from)
		return
	}
	if text := r.Header.Get("Last-Event-ID"); text != "" {
		var ok bool
		if start.From, ok = parseFeedID(text); !ok {
			a.problem(w, http.StatusBadRequest, "Last-Event-ID: %.100s: want the id of a message of this feed, such as 0-1200,3-57", text)
			return
		}
		start.Beginning = false
	}
	select {
	case a.following <- struct{}{}:
		defer func() { <-a.following }()
	default:
		w.Header().Set("Retry-After", "5")
		a.problem(w, http.StatusServiceUnavailable, "%d feeds are followed already, and no more may", maxFollowers)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy must not hold it back
	if r.Method == http.MethodHead {
		return
	}
	s := &stream{w: w, ctl: http.NewResponseController(w), d: d, keep: keep, frontier: map[int32]Position{}, next: map[int32]int64{}}
	s.buf.WriteString("retry: 1000\n\n")
	err := p.Follow(r.Context(), start, s.send)
	if s.broken != nil {
		return // whoever asked has gone, or does not read
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
		end = feedEnd{"stopping", "the worker stops"}
	default:
		a.log.Error("a feed failed", "projection", d.Name, "err", err)
	}
	_ = s.message(kindEnd, "", end)
	_ = s.flush() // whoever asked may have gone
}

// stream writes messages of one feed.
type stream struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	d    Description
	keep *filter

	frontier map[int32]Position
	next     map[int32]int64 // where to go on
	stalled  []Stall
	said     time.Time // when that was last told
	beat     time.Time // of the last frontier
	buf      bytes.Buffer
	begun    bool  // something was written
	broken   error // of writing
}

func (s *stream) send(c Changes) error {
	if c.Stalled != nil {
		return s.stall(c.Stalled)
	}
	pending := -1 // where the last snapshot begins, which gets the id
	for i := range c.Aggregates {
		g := &c.Aggregates[i]
		if c.Next != nil {
			s.next[c.At.Partition] = c.Next[i]
		}
		if s.keep != nil {
			switch ok, err := s.keep.match(g); {
			case err != nil:
				return fmt.Errorf("filter, of aggregate %q: %w", g.ID, err)
			case !ok:
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
	if c.Quiet && time.Since(s.beat) >= feedBeat {
		s.beat = time.Now()
		all := []Position{}
		for _, n := range slices.Sorted(maps.Keys(s.frontier)) {
			if !slices.ContainsFunc(s.stalled, func(x Stall) bool { return x.Partition == n }) {
				all = append(all, s.frontier[n])
			}
		}
		if err := s.message(kindFrontier, s.id(), feedFrontier{made{s.d.Name, s.d.Version}, all}); err != nil {
			return err
		}
	}
	return s.flush()
}

// stall tells of which partitions nothing comes, if those are others than before
// or it is some time since. When that is over, the next frontier says so, soon.
func (s *stream) stall(now []Stall) error {
	of := func(a, b Stall) bool { return a.Partition == b.Partition }
	same := slices.EqualFunc(now, s.stalled, of)
	if s.stalled = slices.Clone(now); !same {
		s.beat = time.Time{}
	}
	if len(now) == 0 || same && time.Since(s.said) < feedBeat {
		return nil
	}
	s.said = time.Now()
	if err := s.message(kindStalled, "", feedStalled{made{s.d.Name, s.d.Version}, now}); err != nil {
		return err
	}
	return s.flush()
}

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

func (s *stream) flush() error {
	if s.buf.Len() == 0 {
		return nil
	}
	// A writer without deadlines is a test's.
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

// id says where to go on.
func (s *stream) id() string { return feedID(s.next) }

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
