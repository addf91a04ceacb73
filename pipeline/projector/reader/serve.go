package reader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"millrace/pipeline/projector/query"
)

// This file serves the parts of this worker to other workers, and defines the JSON of
// that protocol. Package projector routes the requests and merges the parts.

// Parameter encodes a parameter of a request to another worker, as JSON.
func Parameter(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// readParameter decodes a parameter, if the request has it.
func readParameter(in *http.Request, name string, into any) error {
	text := in.URL.Query().Get(name)
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// writeJSON answers another worker with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a worker that is gone asks another one
}

// PageQuestion asks for one worker's part of a list.
type PageQuestion struct {
	Type  string             `json:"type,omitempty"`
	From  *query.EventCursor `json:"from,omitempty"`
	Limit int                `json:"limit"`
}

// EventsPart is one worker's part of a list of events.
type EventsPart struct {
	At     []query.Position `json:"at"`
	Events []PeerEvent      `json:"events"`
}

// PeerEvent is an event in an answer to another worker.
type PeerEvent struct {
	query.Event
	Type string // full name; instead of the schema
}

// ServeEvents answers with an [EventsPart].
func (r *Reader) ServeEvents(w http.ResponseWriter, in *http.Request) error {
	var q PageQuestion
	if err := readParameter(in, "page", &q); err != nil {
		return err
	}
	events, at, err := r.Events(in.Context(), q.Type, q.From, q.Limit)
	if err != nil {
		return err
	}
	out := EventsPart{At: at, Events: make([]PeerEvent, len(events))}
	for i, e := range events {
		out.Events[i] = PeerEvent{e, e.Type.Name()}
		out.Events[i].Event.Type = nil
	}
	writeJSON(w, out)
	return nil
}

// BlockedPart is one worker's part of a list of blocked aggregates.
type BlockedPart struct {
	At    []query.Position         `json:"at"`
	Items []query.BlockedAggregate `json:"items"`
}

// ServeBlocked answers with a [BlockedPart].
func (r *Reader) ServeBlocked(w http.ResponseWriter, in *http.Request) error {
	var q PageQuestion
	if err := readParameter(in, "page", &q); err != nil {
		return err
	}
	items, at := r.BlockedPage(q.From, q.Limit)
	writeJSON(w, BlockedPart{at, items})
	return nil
}

// ServeRelease releases an aggregate and answers with a [ReleasedPart].
func (r *Reader) ServeRelease(w http.ResponseWriter, in *http.Request) error {
	out, err := r.ReleasePart(in.Context(), in.URL.Query().Get("id"), in.URL.Query().Get("skip") == "true")
	if err != nil {
		return err
	}
	writeJSON(w, out)
	return nil
}

// ServePositions answers with the positions of this worker's partitions.
func (r *Reader) ServePositions(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, r.Partitions())
	return nil
}

// OutcomePart is the outcome of an event as far as one worker knows it.
type OutcomePart struct {
	query.Outcome
	NoHistory bool `json:"no_history,omitempty"`
}

// ServeOutcome answers with an [OutcomePart], after a wait if that is asked for.
func (r *Reader) ServeOutcome(w http.ResponseWriter, in *http.Request) error {
	var e query.EventRef
	if err := readParameter(in, "event", &e); err != nil {
		return err
	}
	wait, err := time.ParseDuration(in.URL.Query().Get("wait"))
	if err != nil {
		return err
	}
	out, err := r.Await(in.Context(), e, wait)
	part := OutcomePart{out, errors.Is(err, query.ErrNoHistory)}
	if err != nil && !part.NoHistory {
		return err
	}
	writeJSON(w, part)
	return nil
}

// ScanLine is a line of a scan: first At, then aggregates, then End.
type ScanLine struct {
	At        []query.Position `json:"at,omitempty"`
	Aggregate *query.Aggregate `json:"aggregate,omitempty"`
	End       bool             `json:"end,omitempty"`
}

// ServeScan answers with the aggregates of this worker's partitions, as lines of
// [ScanLine]. If the scan fails, the last line is missing.
func (r *Reader) ServeScan(w http.ResponseWriter, in *http.Request) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	failed := enc.Encode(ScanLine{At: r.Partitions()})
	_, err := r.Scan(in.Context(), in.URL.Query().Get("after"), func(a query.Aggregate) bool {
		failed = errors.Join(failed, enc.Encode(ScanLine{Aggregate: &a}))
		return failed == nil
	})
	if errors.Join(err, failed) == nil {
		_ = enc.Encode(ScanLine{End: true}) // the other worker sees that it is missing
	}
	return nil
}

// feedWrite is the timeout of a write to another worker.
const feedWrite = 10 * time.Second

// PeerStart asks another worker for a feed.
type PeerStart struct {
	ID         string          `json:"id,omitempty"`
	Partitions []int32         `json:"partitions"`
	From       map[int32]int64 `json:"from,omitempty"` // of all partitions, or of none: from now on
}

// PeerChanges is a line of a feed for another worker. The last one has End.
type PeerChanges struct {
	Changes *query.Changes `json:"changes,omitempty"`
	End     feedEnd        `json:"end,omitempty"`
	Detail  string         `json:"detail,omitempty"`
}

// feedEnd is the reason why a feed for another worker ended.
type feedEnd string

const (
	endMoved  feedEnd = "moved" // or the worker never had the partitions, or it stops
	endSlow   feedEnd = "slow"
	endAhead  feedEnd = "ahead"
	endFailed feedEnd = "failed"
)

// ServeFeed follows partitions for another worker, and answers with lines of
// [PeerChanges].
func (r *Reader) ServeFeed(w http.ResponseWriter, in *http.Request) error {
	var start PeerStart
	if err := readParameter(in, "start", &start); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctl := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	send := func(line PeerChanges) error {
		if err := errors.Join(ctl.SetWriteDeadline(time.Now().Add(feedWrite)), enc.Encode(line)); err != nil {
			return err
		}
		return ctl.Flush()
	}
	defer ctl.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection may be reused, if it still can
	err := r.FollowPartitions(in.Context(), query.Start{ID: start.ID, From: start.From}, start.Partitions, func(c query.Changes) error { return send(PeerChanges{Changes: &c}) })
	last := PeerChanges{End: endFailed, Detail: fmt.Sprint(err)}
	switch {
	case errors.Is(err, query.ErrMoved), errors.Is(err, query.ErrElsewhere), errors.Is(err, context.Canceled):
		last.End = endMoved
	case errors.Is(err, query.ErrSlow):
		last.End = endSlow
	case errors.Is(err, query.ErrAhead):
		last.End = endAhead
	}
	_ = send(last) // the other worker may be gone
	return nil
}

// errPeerFailed is the error of a feed that failed at another worker.
var errPeerFailed = errors.New("it failed there")

// Ended returns the error in the last line of a feed, nil for other lines.
func (l *PeerChanges) Ended() error {
	because := func(err error) error {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(l.Detail, ": "+err.Error()), err)
	}
	switch {
	case l.End == endMoved:
		return because(query.ErrMoved)
	case l.End == endSlow:
		return query.ErrSlow
	case l.End == endAhead:
		return because(query.ErrAhead)
	case l.End != "" || l.Changes == nil:
		return because(errPeerFailed)
	}
	return nil
}
