// Package pool pools the memory that a Kafka client reads records into.
//
// Start at [Fetches], which any goroutine may use.
package pool

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Fetches pools the records that a client reads and their decompressed bytes. A batch
// returns its memory when it ends, or when one of its parts is settled, and never earlier:
// emitted records still point into it. The client calls the pool from several goroutines.
//
// A discarded client does not return its memory; the garbage collector frees it.
type Fetches struct {
	mu      sync.Mutex // guards the fields below
	records [][]kgo.Record
	bytes   [][]byte
	spare   int // how many more bytes the pool may keep
}

var (
	_ kgo.PoolRecords         = (*Fetches)(nil)
	_ kgo.PoolDecompressBytes = (*Fetches)(nil)
)

// maxSpareRecords bounds how many record slices are kept: one fetched batch can hold
// several thousand records.
const maxSpareRecords = 64

// New returns a pool that keeps at most spare decompressed bytes.
func New(spare int) *Fetches { return &Fetches{spare: spare} }

// GetRecords returns a slice with a capacity of n or more.
func (p *Fetches) GetRecords(n int) []kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.records) - 1; i >= 0; i-- {
		if rs := p.records[i]; cap(rs) >= n && cap(rs) <= 4*n+64 {
			last := len(p.records) - 1
			p.records[i] = p.records[last]
			p.records[last] = nil
			p.records = p.records[:last]
			return rs
		}
	}
	return make([]kgo.Record, n)
}

// PutRecords keeps the slice.
func (p *Fetches) PutRecords(rs []kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) == maxSpareRecords {
		copy(p.records, p.records[1:]) // drop the oldest unused slice
		p.records = p.records[:maxSpareRecords-1]
	}
	p.records = append(p.records, rs)
}

// GetDecompressBytes returns a slice of the size that the compressed bytes are likely
// to need.
func (p *Fetches) GetDecompressBytes(compressed []byte, _ kgo.CompressionCodecType) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.bytes) - 1; i >= 0; i-- {
		// The client clears a returned slice to its full capacity, so a slice that
		// is far too large wastes time.
		if b := p.bytes[i]; cap(b) >= 2*len(compressed) && cap(b) <= 16*len(compressed)+4096 {
			last := len(p.bytes) - 1
			p.bytes[i] = p.bytes[last]
			p.bytes[last] = nil
			p.bytes = p.bytes[:last]
			p.spare += cap(b)
			return b
		}
	}
	return nil // the client then allocates the exact size
}

// PutDecompressBytes keeps the slice, if there is room.
func (p *Fetches) PutDecompressBytes(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(b) > p.spare {
		return
	}
	p.spare -= cap(b)
	p.bytes = append(p.bytes, b)
}
