package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"net/url"
)

// readEvents returns all committed events of a topic, partition by partition.
func (d *demo) readEvents(ctx context.Context, topic string) ([]demoEvent, error) {
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{d.registry}})
	if err != nil {
		return nil, err
	}
	var events []demoEvent
	var text []byte
	err = d.readTopic(ctx, topic, func(rec *pipeline.Record) error {
		ref, body, err := codec.Unframe(rec)
		if err != nil {
			return err
		}
		schema, err := registry.Schema(ctx, ref)
		if err != nil {
			return err
		}
		if text, err = codec.AppendJSON(text[:0], schema.Root(), body); err != nil {
			return err
		}
		var e demoEvent
		if err := json.Unmarshal(text, &e); err != nil {
			return err
		}
		events = append(events, e)
		return nil
	})
	return events, err
}

// countRecords returns the number of committed records of a topic.
func (d *demo) countRecords(ctx context.Context, topic string) (n int, err error) {
	err = d.readTopic(ctx, topic, func(*pipeline.Record) error { n++; return nil })
	return n, err
}

// readTopic calls f with each committed record of a topic.
func (d *demo) readTopic(ctx context.Context, topic string, f func(*pipeline.Record) error) error {
	cluster, err := kafka.EnsureTopics(ctx, d.cluster(), []kafka.TopicSpec{{Name: topic}}, false)
	if err != nil {
		return err
	}
	for p := range cluster.Topics[topic].Partitions {
		_, err := kafka.ReadPartition(ctx, d.cluster(), topic, int32(p), 0, func(rec *pipeline.Record) error {
			if err := f(rec); err != nil {
				return fmt.Errorf("record %s/%d@%d: %w", topic, p, rec.Offset, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// list calls f with each aggregate of a projection, page by page.
func (d *demo) list(ctx context.Context, projection string, f func(json.RawMessage) error) error {
	cursor := ""
	for {
		var page struct {
			Items      []json.RawMessage `json:"items"`
			NextCursor string            `json:"next_cursor"`
		}
		query := url.Values{"limit": {"1000"}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		if err := d.workers.getJSON(ctx, d.child("projector").url+"/v1/projections/"+projection+"?"+query.Encode(), &page); err != nil {
			return err
		}
		for _, item := range page.Items {
			if err := f(item); err != nil {
				return err
			}
		}
		if cursor = page.NextCursor; cursor == "" {
			return nil
		}
	}
}
