package pending

import "sync"

// Erased are the aggregates that were erased since a lane was opened. They have a
// lock of their own: every record of the control topic asks for them, and must not wait
// for a batch that is being folded.
type Erased struct {
	mu  sync.Mutex // guards ids
	ids map[string]bool
}

// Has reports whether an aggregate was erased.
func (e *Erased) Has(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ids[id]
}

// Add adds an aggregate.
func (e *Erased) Add(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ids == nil {
		e.ids = map[string]bool{}
	}
	e.ids[id] = true
}
