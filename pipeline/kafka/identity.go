package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// A topic that was deleted and created again has the same name, but another id, and its
// offsets mean other records. Three things keep the two apart:
//
//   - A client that knows the old topic refuses to read or write the new one.
//   - A loop compares the ids of its topics at every assignment, and every identityEvery.
//   - An offset is committed with the id of its topic. Without it, a worker that starts
//     later would skip the first records of the new topic: a member may commit its old
//     position by the topic's name after the brokers have deleted the old offsets.
//
// A topic with more partitions keeps its id. Keys move, so nothing may continue.

// ErrRecreated is in the chain of the error with which [Loop.Run] and [Watch] end when a
// topic was deleted and created again. A new Loop reads the new topic from its start.
var ErrRecreated = errors.New("the topic was deleted and created again")

// identityEvery is how often the topics are compared.
const identityEvery = 2 * time.Second

// Watch compares topics with what they were. It returns nil when the context ends, and an
// error of [pipeline.ClassFatal] when a topic has another id, with [ErrRecreated], or
// another number of partitions. While the topics cannot be described, it continues.
func Watch(ctx context.Context, cfg Config, known map[string]TopicInfo) error {
	cfg.Registerer = nil // no metrics for requests this rare
	cl, err := openClient(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	return watch(ctx, known, func() *kgo.Client { return cl })
}

func watch(ctx context.Context, known map[string]TopicInfo, client func() *kgo.Client) error {
	tick := time.NewTicker(identityEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		cl := client()
		if cl == nil {
			continue
		}
		if now, err := topicInfos(ctx, cl, known); err == nil {
			if err := compareTopics(known, now); err != nil {
				return err
			}
		}
	}
}

// topicInfos returns what the topics are now; a topic that does not exist is missing.
func topicInfos(ctx context.Context, cl *kgo.Client, known map[string]TopicInfo) (map[string]TopicInfo, error) {
	req := kmsg.NewPtrMetadataRequest()
	for name := range known {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	now := map[string]TopicInfo{}
	for _, t := range resp.Topics {
		if t.Topic != nil && t.ErrorCode == 0 {
			now[*t.Topic] = TopicInfo{*t.Topic, kadm.TopicID(t.TopicID).String(), len(t.Partitions)}
		}
	}
	return now, nil
}

// compareTopics returns an error for each topic that has changed.
func compareTopics(known, now map[string]TopicInfo) error {
	var faults []error
	for name, was := range known {
		is, ok := now[name]
		switch {
		case !ok: // deleted, and perhaps created again soon
		case was.ID != is.ID:
			faults = append(faults, pipeline.Fatal("topic %s: %w: its id was %s and is %s", name, ErrRecreated, was.ID, is.ID))
		case was.Partitions != is.Partitions:
			faults = append(faults, pipeline.Fatal("topic %s had %d partitions when this program started and has %d now: keys have moved, so it cannot continue; declare it with %d partitions if no key matters, or copy its events to a new topic", name, was.Partitions, is.Partitions, is.Partitions))
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// checkTopics compares the topics of the loop, at an assignment.
func (s *session) checkTopics(ctx context.Context) error {
	known := s.loop.cfg.Known
	if len(known) == 0 {
		return nil
	}
	now, err := topicInfos(ctx, s.client.Load(), known)
	if err != nil {
		return fmt.Errorf("describing the topics: %w", err)
	}
	return compareTopics(known, now)
}

// topicMark begins the metadata of a committed offset; the id of its topic follows.
const topicMark = "topic-id="

// mark returns the metadata to commit with an offset of a topic; nil if its id is unknown.
func (c *LoopConfig) mark(topic string) *string {
	info, ok := c.Known[topic]
	if !ok {
		return nil
	}
	text := topicMark + info.ID
	return &text
}

// foreign returns the partitions whose committed offset is of an earlier topic of the same
// name.
func (s *session) foreign(ctx context.Context, adm *kadm.Client, topics []string) (map[topicPartition]bool, error) {
	cfg := &s.loop.cfg
	if len(cfg.Known) == 0 {
		return nil, nil
	}
	committed, err := adm.FetchOffsetsForTopics(ctx, cfg.Group, topics...)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the committed offsets: %w", err)
	}
	found := map[topicPartition]bool{}
	committed.Each(func(o kadm.OffsetResponse) {
		id, marked := strings.CutPrefix(o.Metadata, topicMark)
		if known, ok := cfg.Known[o.Topic]; ok && o.Err == nil && o.At >= 0 && marked && id != known.ID {
			found[topicPartition{o.Topic, o.Partition}] = true
			s.log.Warn("the committed offset is of an earlier topic of the same name; reading the topic from its start", "topic", o.Topic, "partition", o.Partition, "offset", o.At, "id", known.ID, "earlier_id", id)
		}
	})
	return found, nil
}
