package projection

import (
	"sync"

	"millrace/pipeline/projector/query"
)

// refusals are events of a lane that were recently not applied, for those who wait for
// them. Refusals from before the worker started are not known.
type refusals struct {
	mu    sync.Mutex // guards the fields below
	known map[string]query.Outcome
	order []string // ids, the oldest first
}

// maxRefused bounds the refusals of a lane.
const maxRefused = 1 << 10

func (r *refusals) add(eventID []byte, out query.Outcome) {
	if len(eventID) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]query.Outcome{}
	}
	id := string(eventID)
	if _, known := r.known[id]; !known {
		r.order = append(r.order, id)
	}
	r.known[id] = out
	if len(r.order) > maxRefused {
		delete(r.known, r.order[0])
		r.order = r.order[1:]
	}
}

func (r *refusals) addLate(eventID []byte, aggregate string) {
	r.add(eventID, query.Outcome{State: query.Late, Aggregate: aggregate, Detail: "its aggregate was deleted before, and events do not restore it"})
}

func (r *refusals) addRejected(eventID []byte, aggregate string, err error) {
	r.add(eventID, query.Outcome{State: query.Rejected, Aggregate: aggregate, Detail: err.Error()})
}

func (r *refusals) get(eventID string) (query.Outcome, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out, ok := r.known[eventID]
	return out, ok
}
