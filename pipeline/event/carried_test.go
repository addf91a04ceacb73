package event_test

import (
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
)

func headersNamed(names ...string) (out []pipeline.Header) {
	for _, name := range names {
		out = append(out, pipeline.Header{Key: name, Value: []byte("x")})
	}
	return out
}

func TestHeadersThatDescribeTheOldValueOrKeyAreNotCarried(t *testing.T) {
	had := headersNamed("traceparent", "__value_schema_id", "__key_schema_id", "apicurio.key.globalId", "content-type", "tenant")
	var c event.Carrier
	for newKey, want := range map[bool]string{
		false: "traceparent=x\n__key_schema_id=x\napicurio.key.globalId=x\ntenant=x",
		true:  "traceparent=x\ntenant=x",
	} {
		if got := eventtest.HeaderText(c.Carried(had, newKey)); got != want {
			t.Errorf("new key %v: carried\n%s\nwant\n%s", newKey, got, want)
		}
	}
}

// Results do not share memory, although they come from one block.
func TestCarriedHeadersStayUnchanged(t *testing.T) {
	var c event.Carrier
	first := c.Carried(headersNamed("a", "content-type"), false)
	second := c.Carried(headersNamed("content-type", "b", "c"), false)
	_ = append(first, headersNamed("d")...)
	if got := eventtest.HeaderText(first) + "," + eventtest.HeaderText(second); got != "a=x,b=x\nc=x" {
		t.Errorf("the results are %s", got)
	}
}

func TestHeadersThatAreAllCarriedCostNothing(t *testing.T) {
	had := headersNamed("traceparent", "tenant", "ce_source")
	var c event.Carrier
	if n := testing.AllocsPerRun(100, func() {
		if got := c.Carried(had, true); len(got) != len(had) || &got[0] != &had[0] {
			t.Error("the headers were copied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
