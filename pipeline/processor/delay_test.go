package processor_test

import (
	"strings"
	"testing"

	"millrace/pipeline/processor/processortest"
)

// A wait that no retry can make short enough ends the program with the code of a wrong
// configuration, whatever the other pipelines do.
func TestRunExitsIfStagesWaitTooLongForTheTransaction(t *testing.T) {
	const text = `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none}
  pages: {partitions: 1, types: [Page], envelope: none, config: {cleanup.policy: compact}}
  out: {partitions: 1}
  dead: {partitions: 1}
tables: {pages: {topic: pages}}
pipelines:
  quick: {from: in, to: out, dead_letter: dead}
  slow:
    from: in
    to: out
    dead_letter: dead
    stages:
      - lookup: {table: pages, key: id, missing: wait, wait: 6s}
`
	b := processortest.NewBench(t, text)
	code, out := b.Processor(b.File(text), "run", "--listen", "127.0.0.1:0")
	if code != 2 || !strings.Contains(out, "pipeline slow: its stages may delay a transaction by 6s, but --transaction-timeout is only 10s: set it to at least 12s") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
