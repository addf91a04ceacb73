package query

import "sync"

// Refusals are events of a partition that were recently not applied, for requests that wait
// for them. Refusals from before the worker started are not known. The methods may be called
// from any goroutine.
type Refusals struct {
	mu    sync.Mutex // guards the fields below
	known map[refusedEvent]Outcome
	last  map[string]refusedEvent // by id: of the aggregate that refused it last
	order []refusedEvent          // the oldest first
}

// refusedEvent is an event with the aggregate that refused it.
type refusedEvent struct{ id, aggregate string }

// maxRefused bounds the refusals of a partition.
const maxRefused = 1 << 10

func (r *Refusals) add(eventID []byte, out Outcome) {
	if len(eventID) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known, r.last = map[refusedEvent]Outcome{}, map[string]refusedEvent{}
	}
	e := refusedEvent{string(eventID), out.Aggregate}
	if _, known := r.known[e]; !known {
		r.order = append(r.order, e)
	}
	r.known[e], r.last[e.id] = out, e
	if len(r.order) > maxRefused {
		oldest := r.order[0]
		delete(r.known, oldest)
		if r.last[oldest.id] == oldest {
			delete(r.last, oldest.id)
		}
		r.order = r.order[1:]
	}
}

// AddLate notes an event of an aggregate that was deleted before.
func (r *Refusals) AddLate(eventID []byte, aggregate string) {
	r.add(eventID, Outcome{State: Late, Aggregate: aggregate, Detail: "its aggregate was deleted before, and events do not restore it"})
}

// AddRejected notes an event that could not be folded.
func (r *Refusals) AddRejected(eventID []byte, aggregate string, err error) {
	r.add(eventID, Outcome{State: Rejected, Aggregate: aggregate, Detail: err.Error()})
}

// AddConflict notes an event whose sequence number was applied before, with the winner's id.
func (r *Refusals) AddConflict(eventID []byte, aggregate string, number int64, winner string) {
	r.add(eventID, Outcome{State: Conflict, Aggregate: aggregate, Sequence: number, Winner: winner, Detail: ConflictDetail(number, winner)})
}

// Get returns the outcome of an event for an aggregate, or for the last one that refused it
// if aggregate is "".
func (r *Refusals) Get(eventID, aggregate string) (Outcome, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := refusedEvent{eventID, aggregate}
	if aggregate == "" {
		e = r.last[eventID]
	}
	out, ok := r.known[e]
	return out, ok
}
