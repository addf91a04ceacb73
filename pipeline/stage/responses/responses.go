// Package responses caches the responses of services for the stage http.
package responses

import (
	"sync"
	"time"
)

// A Cache holds responses by request, in two generations. When the young generation is
// full, it becomes the old one, and the previous old one is deleted. It is safe for
// concurrent use.
type Cache struct {
	keep  time.Duration
	limit int // maximum number of responses per generation

	mu         sync.Mutex
	young, old map[string]response // guarded by mu
}

type response struct {
	body  []byte // as Avro; empty if the status is 404 or 410
	until time.Time
}

// New returns a cache that keeps a response for a time, and at most about that many
// responses.
func New(keep time.Duration, entries int64) *Cache {
	return &Cache{keep: keep, limit: int(entries+1) / 2}
}

// Cleared returns an empty cache of the same kind.
func (c *Cache) Cleared() *Cache { return &Cache{keep: c.keep, limit: c.limit} }

// Get returns the response to a request, if the cache has it.
func (c *Cache) Get(request []byte) ([]byte, bool) {
	c.mu.Lock()
	a, ok := c.young[string(request)]
	if !ok {
		a, ok = c.old[string(request)]
	}
	c.mu.Unlock()
	if !ok || !time.Now().Before(a.until) {
		return nil, false
	}
	return a.body, true
}

// Put adds a response. The cache keeps the bytes.
func (c *Cache) Put(request, body []byte) {
	if c.limit == 0 || c.keep <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= c.limit || c.young == nil {
		c.old, c.young = c.young, map[string]response{}
	}
	c.young[string(request)] = response{body, time.Now().Add(c.keep)}
}
