package projector

import (
	"context"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
)

// announceTimeout bounds the last announcement of a worker that stops.
const announceTimeout = 2 * time.Second

// announcer keeps the partitions of this worker on the control topic, so that other
// workers can send it the questions that it can answer. Its fields are immutable.
type announcer struct {
	kafka    kafka.Config
	topic    string // the control topic
	instance string
	roster   *roster
	replica  bool
	address  func() string // at which other workers reach this one
	epoch    int64         // of this process
	log      *slog.Logger
	moved    chan struct{} // capacity 1: partitions came or went
}

// changed reports that partitions came or went.
func (a *announcer) changed() {
	select {
	case a.moved <- struct{}{}:
	default:
	}
}

// run announces changes until the context ends.
func (a *announcer) run(ctx context.Context) error {
	const shortest, longest = 100 * time.Millisecond, 5 * time.Second
	for wait := shortest; ; {
		var retry <-chan time.Time
		if err := a.write(ctx, a.record()); err != nil && ctx.Err() == nil {
			a.log.Warn("cannot tell other workers which partitions this worker has; trying again", "err", err, "wait", wait)
			retry, wait = time.After(wait), min(2*wait, longest)
		} else {
			wait = shortest
		}
		select {
		case <-a.moved:
			continue
		case <-retry:
			continue
		case <-ctx.Done():
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
		defer cancel()
		if err := a.write(last, nil); err != nil {
			a.log.Warn("cannot tell other workers that this worker stops", "err", err)
		}
		return nil
	}
}

// write writes the record of this worker; nil deletes it.
func (a *announcer) write(ctx context.Context, value any) error {
	return control.WriteRecords(ctx, a.kafka, a.topic, time.Now(), control.Record{Key: control.WorkerPrefix + a.instance, Value: value})
}

// record returns the partitions of this worker.
func (a *announcer) record() control.WorkerRecord {
	r := control.WorkerRecord{Format: control.Format, Address: a.address(), Epoch: a.epoch, Time: time.Now().UTC(), Partitions: map[string]map[string][]int32{}}
	if a.replica {
		r.Replica = true
		return r
	}
	for _, l := range a.roster.all() {
		if l.follows {
			continue
		}
		topics := map[string][]int32{}
		for _, key := range l.set.Assigned() {
			topics[key.Topic] = append(topics[key.Topic], key.Partition)
		}
		for _, ps := range topics {
			slices.Sort(ps)
		}
		r.Partitions[l.group] = topics
	}
	return r
}

// addressOf returns the address at which other workers reach this one: the advertised
// one, else the one on which it listens, with the host's name if it listens on all
// addresses.
func addressOf(advertised, listening string) string {
	if advertised != "" {
		return advertised
	}
	host, port, err := net.SplitHostPort(listening)
	if err != nil || !net.ParseIP(host).IsUnspecified() {
		return listening
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, port)
	}
	return listening
}
