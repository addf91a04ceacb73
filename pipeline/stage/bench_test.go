package stage_test

import (
	"context"
	"testing"

	"millrace/pipeline"
)

// BenchmarkStages measures the walk, one stage and the encoding of the output for one
// event. The case none measures a chain without effect.
func BenchmarkStages(b *testing.B) {
	for _, c := range []struct{ name, stages, event string }{
		{"none", `filter: {keep: "true"}`, order},
		{"filter", `filter: {on: [OrderCreated], keep: data.total_amount > 10.0}`, order},
		{"enrich", `enrich: {on: [OrderCreated], set: {metadata.seen: "'yes'", data.total_amount: data.total_amount * 2.0}}`, order},
		{"route", `route: {on: [OrderCreated], cases: [{when: data.total_amount > 100.0, to: shop.large}], otherwise: shop.orders}`, order},
		{"rekey", `rekey: {on: [OrderCreated], key: data.user_id}`, order},
		{"split in 2", `split: {on: [OrderCreated], field: data.items}`, order},
		{"split in 2 and set", `split: {on: [OrderCreated], field: data.items, set: {data.total_amount: item.price * double(item.quantity)}}`, order},
		{"mask keep", `mask: {on: [UserCreated], fields: {data.name: keep_first 1, data.email: keep_last 3}}`, user},
		{"mask hash", `mask: {on: [UserCreated], fields: {data.email: hash}, key: secret}`, user},
		{"assert", `assert: {on: [OrderCreated], that: data.total_amount > 0.0}`, order},
		{"upcast", `upcast: {on: [OrderCreated], below: 9, set: {metadata.currency: "'EUR'"}}`, order},
		{"go", `go: {on: [OrderCreated], use: tier, with: {gold: 20}}`, order},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRunnerOf(b, c.stages, nil, withGo(tier))
			typ, body := r.encode(b, c.event)
			record := &pipeline.Record{Topic: "shop.events", Key: []byte("k-1"), Value: body}
			e := &r.event
			var out []byte
			keep := func(e *pipeline.Event) error { out = e.Append(out[:0]); return nil }
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				e.Record, e.Type, e.NewKey, e.To, e.OldType, e.Arena = record, typ, nil, nil, -1, e.Arena[:0]
				if err := r.plan.Layouts[typ].Walk(body, &e.View); err != nil {
					b.Fatal(err)
				}
				if err := r.chain.Process(ctx, e, keep); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
