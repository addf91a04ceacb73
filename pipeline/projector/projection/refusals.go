package projection

import (
	"sync"

	"millrace/pipeline/projector/query"
)

// refusals are events of a lane that were recently not applied, for those who wait for
// them. Refusals from before the worker started are not known.
type refusals struct {
	mu    sync.Mutex // guards the fields below
	known map[refusedEvent]query.Outcome
	last  map[string]refusedEvent // by id: of the aggregate that refused it last
	order []refusedEvent          // the oldest first
}

// refusedEvent is an event with the aggregate that refused it.
type refusedEvent struct{ id, aggregate string }

// maxRefused bounds the refusals of a lane.
const maxRefused = 1 << 10

func (r *refusals) add(eventID []byte, out query.Outcome) {
	if len(eventID) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known, r.last = map[refusedEvent]query.Outcome{}, map[string]refusedEvent{}
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

func (r *refusals) addLate(eventID []byte, aggregate string) {
	r.add(eventID, query.Outcome{State: query.Late, Aggregate: aggregate, Detail: "its aggregate was deleted before, and events do not restore it"})
}

func (r *refusals) addRejected(eventID []byte, aggregate string, err error) {
	r.add(eventID, query.Outcome{State: query.Rejected, Aggregate: aggregate, Detail: err.Error()})
}

func (r *refusals) addConflict(eventID []byte, aggregate string, number int64, winner string) {
	r.add(eventID, query.Outcome{State: query.Conflict, Aggregate: aggregate, Sequence: number, Winner: winner, Detail: query.ConflictDetail(number, winner)})
}

// get returns the outcome of an event for an aggregate, or for the last one that refused it
// if aggregate is "".
func (r *refusals) get(eventID, aggregate string) (query.Outcome, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := refusedEvent{eventID, aggregate}
	if aggregate == "" {
		e = r.last[eventID]
	}
	out, ok := r.known[e]
	return out, ok
}
