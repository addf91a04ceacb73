// Command projector folds events into the states of aggregates and serves them over HTTP.
// See projector --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/app"
)

func main() {
	os.Exit(app.NewEnv().Main(os.Args[1:], app.Projector))
}
