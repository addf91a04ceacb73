package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/trace"
)

// explain adds details to the samples. It runs the pipeline again, up to the events
// of the samples.
func (c *comparison) explain(ctx context.Context) error {
	wanted := map[eventPlace][]int{} // indexes of samples
	until := map[int32]int64{}       // where to stop, by partition
	for i := range c.report.Samples {
		d := &c.report.Samples[i]
		if d.wanted == nil || d.wanted.source > 0 {
			continue
		}
		at := eventPlace{d.In.Partition, d.In.Offset}
		wanted[at] = append(wanted[at], i)
		until[d.In.Partition] = max(until[d.In.Partition], d.In.Offset+1)
	}
	r := c.rehearsal(c.pl)
	for _, p := range slices.Sorted(maps.Keys(until)) {
		span := c.inputs[c.pl.From.Name][p].bounds
		span.End = until[p]
		if err := r.Restore(ctx, c.cluster, p, span.Start); err != nil {
			return err
		}
		err := kafka.ReadRange(ctx, c.worker.Kafka, c.pl.From.Name, p, span, func(in *pipeline.Record) error {
			at := eventPlace{in.Partition, in.Offset}
			if r.Skips(in) {
				return nil
			}
			if c.redrive[0][at] {
				for _, i := range wanted[at] {
					c.redrivenDetail(&c.report.Samples[i], in)
				}
				return nil
			}
			out, err := r.Run(ctx, in)
			if err != nil {
				return err
			}
			for _, i := range wanted[at] {
				if err := c.detail(ctx, &c.report.Samples[i], in, out); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range c.report.Samples {
		d := &c.report.Samples[i]
		if d.wanted != nil || d.Found == nil {
			continue
		}
		rec, s, err := c.fetch(ctx, *d.Found)
		if err != nil {
			return err
		}
		d.Text = append(d.Text, "found    "+recordText(rec, s))
	}
	return nil
}

// redrivenDetail completes the sample of an event whose dead letter was sent back.
func (c *comparison) redrivenDetail(d *disagreement, in *pipeline.Record) {
	d.Topic, d.Key = c.pl.DeadLetter.Name, string(in.Key)
	if d.Found != nil {
		d.Found.Topic = d.Topic
	}
	d.Text = append(d.Text, "expected a dead letter, because one was sent back")
}

// detail completes a sample. in is its event, and out the records that the rehearsal
// wrote for it.
func (c *comparison) detail(ctx context.Context, d *disagreement, in *pipeline.Record, out []chain.Output) error {
	for i := range out {
		var group, body uint64
		s := out[i].Sample(in)
		if s.Stage != "" {
			group, body = c.letter(&out[i].Record)
		} else {
			group, body = c.event(out[i].Record.Topic, out[i].Record.Key, out[i].Type(), out[i].Body)
		}
		if group != d.wanted.group || body != d.wanted.body {
			continue
		}
		d.Topic, d.Key = out[i].Record.Topic, out[i].Key
		if d.Found != nil {
			d.Found.Topic = d.Topic
		}
		if d.Kind != "different" {
			d.Text = append(d.Text, "expected "+cli.Clip(sampleText(s), 300))
			return nil
		}
		rec, schema, err := c.fetch(ctx, *d.Found)
		if err != nil {
			return err
		}
		found := recordText(rec, schema)
		var differing []string
		if s.Stage == "" && schema != nil && schema.Name() == out[i].Type() {
			_, content, err := codec.Unframe(&rec)
			if err != nil {
				return err
			}
			differing = trace.Changes(s.Event, trace.EventJSON(schema, content))
			differing = slices.DeleteFunc(differing, func(line string) bool { return c.ignores(s.Type, line) })
		}
		if len(differing) > 0 {
			d.Text = append(d.Text, differing...)
		} else {
			d.Text = append(d.Text, "expected "+cli.Clip(sampleText(s), 300), "found    "+found)
		}
		return nil
	}
	return nil
}

// ignores reports whether a line of [chain.Changes] is about a field that is not
// compared.
func (c *comparison) ignores(typ, line string) bool {
	path, _, _ := strings.Cut(line, ": ")
	return slices.ContainsFunc(c.report.Ignored, func(f string) bool { return f == typ+"."+path })
}

// sampleText describes an expected record.
func sampleText(s chain.SampleRecord) string {
	if s.Stage != "" {
		return fmt.Sprintf("a dead letter of %s: %s", s.Stage, s.Error)
	}
	if s.Tombstone {
		return "a tombstone"
	}
	return s.Type + " " + string(s.Event)
}

// fetch reads an output record again, with its schema; nil if it has none.
func (c *comparison) fetch(ctx context.Context, at trace.Place) (rec pipeline.Record, s *codec.Schema, err error) {
	err = kafka.ReadRange(ctx, c.worker.Kafka, at.Topic, at.Partition, kafka.Bounds{Start: at.Offset, End: at.Offset + 1}, func(r *pipeline.Record) error {
		rec = *r
		rec.Key, rec.Value, rec.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), slices.Clone(r.Headers)
		return nil
	})
	if err != nil {
		return rec, nil, err
	}
	if ref, _, err := codec.Unframe(&rec); err == nil && len(rec.Value) >= codec.FrameSize {
		if s, err = c.worker.Registry.Schema(ctx, ref); err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
			return rec, nil, err
		}
	}
	return rec, s, nil
}

// recordText describes a record that was found.
func recordText(r pipeline.Record, s *codec.Schema) string {
	if letter := deadletter.Parse(&r); letter.Error != "" {
		return fmt.Sprintf("a dead letter of %s: %s", letter.Stage, cli.Clip(letter.Error, 300))
	}
	if r.Value == nil {
		return "a tombstone"
	}
	if s == nil {
		return fmt.Sprintf("%d bytes that are not an event: %x", len(r.Value), r.Value[:min(len(r.Value), 40)])
	}
	text := json.RawMessage("null")
	if _, body, err := codec.Unframe(&r); err == nil {
		text = trace.EventJSON(s, body)
	}
	return cli.Clip(s.ShortName()+" "+string(text), 300)
}
