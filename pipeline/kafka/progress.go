package kafka

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

type topicPartition struct {
	topic     string
	partition int32
}

func (tp topicPartition) String() string {
	return tp.topic + "/" + strconv.Itoa(int(tp.partition))
}

// PartitionProgress is how far a reader is in a partition. It defines lag: metrics,
// answers and lists get theirs from here.
type PartitionProgress struct {
	Topic     string
	Partition int32
	Position  int64     // next offset to read after the last committed batch
	Done      int64     // everything below was done before the partition was assigned, although it may be read again
	End       int64     // last known last stable offset
	Last      time.Time // timestamp of the last record that was read; the time of the assignment before the first one
}

// Reached returns the offset below which everything is done.
func (p PartitionProgress) Reached() int64 { return max(p.Position, p.Done) }

// Lag returns the number of offsets between Reached and End. It is 0 exactly if everything
// is done. Before End, it counts transaction markers and records of rolled-back
// transactions, too: a reader does not know what it has not read.
func (p PartitionProgress) Lag() int64 { return max(0, p.End-p.Reached()) }

// Age returns the time from Last to now, by the clock of this machine, while there is a
// lag; 0 without one.
func (p PartitionProgress) Age(now time.Time) time.Duration {
	if p.Lag() == 0 {
		return 0
	}
	return max(0, now.Sub(p.Last)) // not negative if the record has a timestamp in the future
}

// progress holds the positions of the sessions of a loop. Sessions write it at the end
// of a batch; health checks and queries read it.
type progress struct {
	mu sync.Mutex // guards at
	at map[topicPartition]PartitionProgress
}

func (p *progress) all() []PartitionProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]PartitionProgress, 0, len(p.at))
	for _, at := range p.at {
		out = append(out, at)
	}
	slices.SortFunc(out, func(a, b PartitionProgress) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return out
}

// of returns the progress in a partition, zero if it is not assigned.
func (p *progress) of(topic string, partition int32) PartitionProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[topicPartition{topic, partition}]
}

// assigned adds a partition.
func (p *progress) assigned(at PartitionProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[topicPartition]PartitionProgress{}
	}
	at.End, at.Last = max(at.End, at.Position), time.Now()
	p.at[topicPartition{at.Topic, at.Partition}] = at
}

// committed notes the end of a batch. A partition that was revoked meanwhile stays so.
func (p *progress) committed(tp topicPartition, read readTo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.at[tp]; ok {
		at.Position, at.End = read.next, max(at.End, read.end, read.next)
		if !read.time.IsZero() {
			at.Last = read.time
		}
		p.at[tp] = at
	}
}

// ends notes an end that was asked for.
func (p *progress) ends(tp topicPartition, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.at[tp]; ok {
		at.End = max(at.End, end)
		p.at[tp] = at
	}
}

func (p *progress) drop(tp topicPartition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, tp)
}

// endsEvery is how often the ends of partitions are asked for.
const endsEvery = 2 * time.Second

// watchEnds asks for the ends of the partitions until the context ends. A reader learns an
// end with the records that it reads, so one that hangs would keep the lag of that time.
// clients returns the clients to ask with; the first that is answered is enough.
func (p *progress) watchEnds(ctx context.Context, clients func() []*kgo.Client) {
	tick := time.NewTicker(endsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, cl := range clients() {
			if cl != nil && p.askEnds(ctx, cl) {
				break
			}
		}
	}
}

// watchEndsWith runs watchEnds with one client until stop is called, which waits for its end.
func (p *progress) watchEndsWith(ctx context.Context, cl *kgo.Client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { p.watchEnds(ctx, func() []*kgo.Client { return []*kgo.Client{cl} }) })
	return func() {
		cancel()
		watching.Wait()
	}
}

// askEnds asks for the last stable offsets of all partitions. It reports whether a broker
// answered; without an answer, the last known ends stay.
func (p *progress) askEnds(ctx context.Context, cl *kgo.Client) bool {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel = -1, 1 // committed records
	for _, at := range p.all() {
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != at.Topic {
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = at.Topic
			req.Topics = append(req.Topics, t)
		}
		one := kmsg.NewListOffsetsRequestTopicPartition()
		one.Partition, one.Timestamp = at.Partition, -1 // the end
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, one)
	}
	if len(req.Topics) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 2*endsEvery)
	defer cancel()
	answered := false
	for _, shard := range cl.RequestSharded(ctx, req) {
		resp, ok := shard.Resp.(*kmsg.ListOffsetsResponse)
		if !ok || shard.Err != nil {
			continue
		}
		answered = true
		for _, t := range resp.Topics {
			for _, one := range t.Partitions {
				if one.ErrorCode == 0 {
					p.ends(topicPartition{t.Topic, one.Partition}, one.Offset)
				}
			}
		}
	}
	return answered
}
