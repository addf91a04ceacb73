// Package changes brings committed changes of aggregates to feeds. A change is sent when the
// transaction with its snapshot has committed, by the session, which waits for no feed: a
// feed has a [Queue], which is of no more use when it is full.
//
// The lock of a Hub is taken before that of a Queue.
package changes

import (
	"slices"
	"sync"

	"millrace/pipeline/projector/query"
)

// Hub holds the queues of partitions.
type Hub struct {
	mu      sync.Mutex // guards the fields below
	of      map[any][]*Queue
	waiting chan struct{} // closed at the next change; nil if nobody waits
}

// Committed are the aggregates of a partition that changed in one transaction, in order
// of Next. At is the position after it.
type Committed struct {
	Aggregates []Aggregate
	At         query.Position
}

// Aggregate is an aggregate that changed, and the offset from which a feed continues after
// it. OutOfOrder reports that it changed otherwise than by the event at its offset: by an
// event that had waited, or because it was blocked or released.
type Aggregate struct {
	query.Aggregate
	Next       int64
	OutOfOrder bool
}

// Changed returns a channel that is closed at the next change of any partition.
func (h *Hub) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		h.waiting = make(chan struct{})
	}
	return h.waiting
}

// Wake closes the channel of Changed.
func (h *Hub) Wake() {
	h.mu.Lock()
	if h.waiting != nil {
		close(h.waiting)
		h.waiting = nil
	}
	h.mu.Unlock()
}

// Join adds a queue to a partition, which is any pointer.
func (h *Hub) Join(partition any, q *Queue) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = map[any][]*Queue{}
	}
	h.of[partition] = append(h.of[partition], q)
}

// Leave removes a queue from all partitions.
func (h *Hub) Leave(q *Queue) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for partition, all := range h.of {
		if all = slices.DeleteFunc(all, func(o *Queue) bool { return o == q }); len(all) == 0 {
			delete(h.of, partition)
		} else {
			h.of[partition] = all
		}
	}
}

// Has reports whether a partition has queues.
func (h *Hub) Has(partition any) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.of[partition]) > 0
}

// Send adds changes to the queues of a partition.
func (h *Hub) Send(partition any, c Committed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, q := range h.of[partition] {
		q.add(c)
	}
}

// most bounds the aggregates in a queue.
const most = 1 << 14

// Queue has changes for one feed. Its exported methods may be called from one goroutine.
type Queue struct {
	id    string // of one aggregate; "" means all
	ready chan struct{}

	mu     sync.Mutex // guards the fields below
	queue  []Committed
	queued int // aggregates in queue
	slow   bool
}

// NewQueue returns a queue for the changes of one aggregate, or, if id is empty, of all.
func NewQueue(id string) *Queue { return &Queue{id: id, ready: make(chan struct{}, 1)} }

// add adds changes to the queue.
func (q *Queue) add(c Committed) {
	if q.id != "" {
		i := slices.IndexFunc(c.Aggregates, func(a Aggregate) bool { return a.ID == q.id })
		if i < 0 {
			return
		}
		c.Aggregates = c.Aggregates[i : i+1]
	}
	if len(c.Aggregates) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queued > 0 && q.queued+len(c.Aggregates) > most {
		q.slow, q.queue = true, nil
	}
	if !q.slow {
		q.queue = append(q.queue, c)
		q.queued += len(c.Aggregates)
	}
	select {
	case q.ready <- struct{}{}:
	default: // it is ready already
	}
}

// Ready returns a channel that gets a value when the queue has changes.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Take empties the queue. slow reports that changes were dropped because the queue was full:
// it is of no more use.
func (q *Queue) Take() (all []Committed, slow bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, q.queue, q.queued = q.queue, nil, 0
	return all, q.slow
}

// IsEmpty reports that the queue has no changes, and has lost none.
func (q *Queue) IsEmpty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue) == 0 && !q.slow
}
