// Command go-stage is the program processor with a stage written in Go, card. It has all
// commands of processor, and every command knows the stage:
//
//	go build -o build/bin/go-stage ./examples/go-stage
//	build/bin/go-stage lint examples/go-stage/topology.yaml
//	build/bin/go-stage test -t examples/go-stage/topology.yaml
//	build/bin/go-stage run -t examples/go-stage/topology.yaml
//
// All programs that load this topology need the stage. Called by the name producer, projector
// or sandbox, for example through a link, the binary is that program.
//
// topology.yaml uses the stage, and card.go implements it. To write your own, copy the
// directory.
package main

import (
	"os"
	"path/filepath"

	"millrace/pipeline/programs"
	"millrace/pipeline/stage"
)

func main() { os.Exit(programs.Main(program(os.Args[0]), kinds())) }

// program returns the program to run: the one whose name path has, or else processor.
func program(path string) string {
	switch name := filepath.Base(path); name {
	case "producer", "projector", "sandbox":
		return name
	}
	return "processor"
}

// kinds returns the built-in stages and those of this program.
func kinds() map[string]stage.Kind {
	kinds := stage.Builtin()
	kinds["go"] = stage.Go(card)
	return kinds
}
