package kafka

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fetchPool keeps what a session's client reads records into, from one batch to
// the next: the records themselves and the bytes that they were unpacked to. A
// batch gives them back when it has ended ([batch.release]), never earlier: what
// a handler emits still points into them.
//
// A client that is thrown away does not give back; the garbage collector does.
type fetchPool struct {
	mu      sync.Mutex
	records [][]kgo.Record
	bytes   [][]byte
	spare   int // of bytes, what may still be kept
}

var (
	_ kgo.PoolRecords         = (*fetchPool)(nil)
	_ kgo.PoolDecompressBytes = (*fetchPool)(nil)
)

// maxSpareRecords bounds how many record slices are kept: fetched batches of a
// topic hold up to some thousands of records.
const maxSpareRecords = 64

// newFetchPool returns a pool that keeps at most so many unpacked bytes.
func newFetchPool(spare int) *fetchPool { return &fetchPool{spare: spare} }

// GetRecords returns a slice with a capacity of n or more.
func (p *fetchPool) GetRecords(n int) []kgo.Record {
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
func (p *fetchPool) PutRecords(rs []kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.records) == maxSpareRecords {
		copy(p.records, p.records[1:]) // the one that nobody wanted for longest
		p.records = p.records[:maxSpareRecords-1]
	}
	p.records = append(p.records, rs)
}

// GetDecompressBytes returns a slice of what the compressed bytes are likely to
// need.
func (p *fetchPool) GetDecompressBytes(compressed []byte, _ kgo.CompressionCodecType) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.bytes) - 1; i >= 0; i-- {
		// The client clears a slice to its capacity when it comes back, so one
		// that is far too large is a waste.
		if b := p.bytes[i]; cap(b) >= 2*len(compressed) && cap(b) <= 16*len(compressed)+4096 {
			last := len(p.bytes) - 1
			p.bytes[i] = p.bytes[last]
			p.bytes[last] = nil
			p.bytes = p.bytes[:last]
			p.spare += cap(b)
			return b
		}
	}
	return nil // the client allocates just what it needs
}

// PutDecompressBytes keeps the slice, if there is room.
func (p *fetchPool) PutDecompressBytes(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(b) > p.spare {
		return
	}
	p.spare -= cap(b)
	p.bytes = append(p.bytes, b)
}
