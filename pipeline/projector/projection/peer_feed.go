package projection

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

// feedWrite is the deadline of a write to another worker.
const feedWrite = 10 * time.Second

// PeerChanges is a line of what a worker tells another one that follows partitions.
// The last one has End.
type PeerChanges struct {
	Changes *query.Changes `json:"changes,omitempty"`
	End     feedEnding     `json:"end,omitempty"`
	Detail  string         `json:"detail,omitempty"`
}

// feedEnding is why a worker tells another one nothing more.
type feedEnding string

const (
	endMoved  feedEnding = "moved" // or it never had the partitions, or it stops
	endSlow   feedEnding = "slow"
	endAhead  feedEnding = "ahead"
	endFailed feedEnding = "failed"
)

// PeerStart says what is followed at another worker.
type PeerStart struct {
	ID         string          `json:"id,omitempty"`
	Partitions []int32         `json:"partitions"`
	From       map[int32]int64 `json:"from,omitempty"` // of all of them, or of none: from now on
}

// ServeFeed follows partitions for another worker.
func (r *Reader) ServeFeed(w http.ResponseWriter, in *http.Request) error {
	var start PeerStart
	if err := readParameter(in, "start", &start); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctl := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	say := func(line PeerChanges) error {
		if err := errors.Join(ctl.SetWriteDeadline(time.Now().Add(feedWrite)), enc.Encode(line)); err != nil {
			return err
		}
		return ctl.Flush()
	}
	defer ctl.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection may be used again, if it still can
	err := r.FollowPartitions(in.Context(), query.Start{ID: start.ID, From: start.From}, start.Partitions, func(c query.Changes) error { return say(PeerChanges{Changes: &c}) })
	last := PeerChanges{End: endFailed, Detail: fmt.Sprint(err)}
	switch {
	case errors.Is(err, query.ErrMoved), errors.Is(err, query.ErrElsewhere), errors.Is(err, context.Canceled):
		last.End = endMoved
	case errors.Is(err, query.ErrSlow):
		last.End = endSlow
	case errors.Is(err, query.ErrAhead):
		last.End = endAhead
	}
	_ = say(last) // whoever asked may have gone
	return nil
}

// errPeerFailed is the error of a source that is another worker.
var errPeerFailed = errors.New("it failed there")

// Ended returns the error that the last line of a feed is.
func (l *PeerChanges) Ended() error {
	was := func(err error) error {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(l.Detail, ": "+err.Error()), err)
	}
	switch {
	case l.End == endMoved:
		return was(query.ErrMoved)
	case l.End == endSlow:
		return query.ErrSlow
	case l.End == endAhead:
		return was(query.ErrAhead)
	case l.End != "" || l.Changes == nil:
		return was(errPeerFailed)
	}
	return nil
}
