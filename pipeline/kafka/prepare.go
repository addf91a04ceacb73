package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// maxPrefixes bounds the memory for the prefixes of values that a session has seen.
const maxPrefixes = 1 << 14

// prefix is the start of a value.
type prefix [pipeline.PrefixSize]byte

// preparer finds the records whose value begins in a new way and passes them to a
// [pipeline.Preparer]. The goroutine of the session owns it.
type preparer struct {
	to      pipeline.Preparer // nil: the handler needs no preparation
	fetches kgo.Fetches       // the records that are handled now

	seen   map[prefix]bool
	since  time.Time  // of the first prefix in seen
	recent [16]prefix // of prefixes in seen, by the last bits: a map costs more than a stage
}

// forgetPrefixes is the age at which prefixes are forgotten, because the handler does not
// remember the results for ever either.
const forgetPrefixes = 20 * time.Second

// begin begins with records that the handler is to handle.
func (p *preparer) begin(h pipeline.Handler, fetches kgo.Fetches) {
	p.to, _ = h.(pipeline.Preparer)
	p.fetches = fetches
	if now := time.Now(); now.Sub(p.since) > forgetPrefixes || len(p.seen) >= maxPrefixes {
		p.forget()
		p.since = now
	}
}

func (p *preparer) forget() {
	p.seen, p.since, p.recent = map[prefix]bool{}, time.Time{}, [16]prefix{}
}

// check is called with each value before its record is handled. At a new prefix, it passes
// the records with new prefixes among all of begin to the handler. A pass over all records
// at begin would read them from memory twice.
func (p *preparer) check(ctx context.Context, value []byte) error {
	if p.to == nil || len(value) < pipeline.PrefixSize {
		return nil
	}
	if this := prefix(value); *p.slot(this) != this {
		return p.look(ctx, this)
	}
	return nil
}

// slot returns the place of a prefix in recent.
func (p *preparer) slot(of prefix) *prefix {
	return &p.recent[of[pipeline.PrefixSize-1]%uint8(len(p.recent))]
}

// look is check for a prefix that is not recent.
func (p *preparer) look(ctx context.Context, this prefix) error {
	*p.slot(this) = this
	if p.seen[this] {
		return nil
	}
	var found []*pipeline.Record
	p.fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		for _, r := range f.Records {
			if len(r.Value) < pipeline.PrefixSize || r.Attrs.IsControl() || p.seen[prefix(r.Value)] {
				continue
			}
			p.seen[prefix(r.Value)] = true
			in := &pipeline.Record{}
			setRecord(in, f.Topic, f.Partition, r)
			found = append(found, in)
		}
	})
	if len(found) < 2 { // Handle does it as fast
		return nil
	}
	err := p.to.Prepare(ctx, found)
	if err != nil {
		p.forget() // the batch is handled again
	}
	return err
}
