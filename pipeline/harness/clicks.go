package harness

import "testing/fstest"

// ClickSchemas are the schemas of the events of [PlainTopology], and one more.
var ClickSchemas = fstest.MapFS{
	"Click.avsc": {Data: []byte(`{"type": "record", "name": "Click", "fields": [
		{"name": "id", "type": "string"},
		{"name": "n", "type": "long"}]}`)},
	"Page.avsc": {Data: []byte(`{"type": "record", "name": "Page", "fields": [
		{"name": "id", "type": "string", "default": ""},
		{"name": "title", "type": "string", "default": ""},
		{"name": "views", "type": ["null", "long"], "default": null}]}`)},
}

// PlainTopology is a topology with one pipeline: of the events 0, 1, 2 and so on, it
// filters every third and makes 13 a dead letter.
const PlainTopology = `
name: t
topics: {in: {partitions: 4, types: [Click], envelope: none}, out: {partitions: 4}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "n % 3 != 0"}
      - assert: {that: "n != 13", message: "'thirteen'"}
      - enrich: {set: {n: "n * 10"}}
`
