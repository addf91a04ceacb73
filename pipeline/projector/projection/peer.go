package projection

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"millrace/pipeline/projector/query"
)

// readParameter reads a parameter in JSON, if it is there.
func readParameter(in *http.Request, name string, into any) error {
	text := in.FormValue(name)
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// JSONParameter is the other way about.
func JSONParameter(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// PageQuestion is what is asked for of a list that is merged.
type PageQuestion struct {
	Type  string             `json:"type,omitempty"`
	From  *query.EventCursor `json:"from,omitempty"`
	Limit int                `json:"limit"`
}

// EventsPart is one worker's part of a list of events.
type EventsPart struct {
	At     []query.Position `json:"at"`
	Events []peerEvent      `json:"events"`
}

// peerEvent is an event as it goes from one worker to another.
type peerEvent struct {
	query.Event
	Type string // full name; instead of the schema
}

func (r *Reader) ServeEvents(w http.ResponseWriter, in *http.Request) error {
	var q PageQuestion
	if err := readParameter(in, "page", &q); err != nil {
		return err
	}
	events, at, err := r.Events(in.Context(), q.Type, q.From, q.Limit)
	if err != nil {
		return err
	}
	out := EventsPart{At: at, Events: make([]peerEvent, len(events))}
	for i, e := range events {
		out.Events[i] = peerEvent{e, e.Type.Name()}
		out.Events[i].Event.Type = nil
	}
	writeJSON(w, out)
	return nil
}

// BlockedPart is one worker's part of what is blocked.
type BlockedPart struct {
	At    []query.Position         `json:"at"`
	Items []query.BlockedAggregate `json:"items"`
}

func (r *Reader) ServeBlockedPart(w http.ResponseWriter, in *http.Request) error {
	var q PageQuestion
	if err := readParameter(in, "page", &q); err != nil {
		return err
	}
	items, at := r.BlockedPage(q.From, q.Limit)
	writeJSON(w, BlockedPart{at, items})
	return nil
}

// ReleasedPart is what a release came to at one worker.
type ReleasedPart struct {
	At       []query.Position `json:"at"`
	Released *query.Released  `json:"released,omitempty"` // nil: it is not blocked here
	Known    bool             `json:"known,omitempty"`    // it is here, but not blocked
	Busy     string           `json:"busy,omitempty"`
}

func (r *Reader) ServeRelease(w http.ResponseWriter, in *http.Request) error {
	out, err := r.ReleasePart(in.Context(), in.FormValue("id"), in.FormValue("skip") == "true")
	if err != nil {
		return err
	}
	writeJSON(w, out)
	return nil
}

func (r *Reader) ServePositions(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, r.Partitions())
	return nil
}

// OutcomePart is what one worker knows of an event.
type OutcomePart struct {
	query.Outcome
	NoHistory bool `json:"no_history,omitempty"`
}

func (r *Reader) ServeOutcome(w http.ResponseWriter, in *http.Request) error {
	var e query.Sought
	if err := readParameter(in, "event", &e); err != nil {
		return err
	}
	wait, err := time.ParseDuration(in.FormValue("wait"))
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

// StateLine is an aggregate as of an offset. The last line of an answer has End.
type StateLine struct {
	ID      string          `json:"id,omitempty"`
	Version int64           `json:"version,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	State   json.RawMessage `json:"state,omitempty"`
	// Unknown says that the aggregate has changed since, and that there is no
	// history to tell how it was.
	Unknown bool `json:"unknown,omitempty"`
	End     bool `json:"end,omitempty"`
}

// writeJSON answers another worker with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a worker that is gone asks another one
}
