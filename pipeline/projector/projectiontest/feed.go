package projectiontest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// FoldedID returns the id of the nth event that UserEvent makes.
func FoldedID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// Message is a message of a feed.
type Message struct{ ID, Event, Data string }

// Feed is a client of a feed.
type Feed struct {
	T    *testing.T
	In   *bufio.Scanner
	stop context.CancelFunc
	Done func()
}

// Follow opens a feed at a URL. last, unless it is empty, is the last event id.
func Follow(t *testing.T, url, last string) *Feed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(r) //nolint:bodyclose // Done closes it
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	return &Feed{T: t, In: bufio.NewScanner(resp.Body), stop: cancel, Done: func() { cancel(); _ = resp.Body.Close() }}
}

// Next returns the next message of some kinds, or of any kind.
func (f *Feed) Next(kinds ...string) Message {
	f.T.Helper()
	for {
		m, ok := f.Read()
		if !ok {
			f.T.Fatalf("the feed ended: %v", f.In.Err())
		}
		if len(kinds) == 0 || slices.Contains(kinds, m.Event) {
			return m
		}
	}
}

// Read returns the next message, if there is one.
func (f *Feed) Read() (m Message, ok bool) {
	for f.In.Scan() {
		name, value, _ := strings.Cut(f.In.Text(), ": ")
		switch name {
		case "id":
			m.ID = value
		case "event":
			m.Event = value
		case "data":
			m.Data = value
		case "":
			if m.Event != "" {
				return m, true
			}
			m = Message{}
		}
	}
	return m, false
}

// Aggregate returns id and version of a snapshot message.
func (m Message) Aggregate(t *testing.T) string {
	t.Helper()
	var s struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal([]byte(m.Data), &s); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s.ID, "@", s.Version)
}
