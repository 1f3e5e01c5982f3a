// Package journal keeps what must survive a crash of the node: the records of package tasks, the node's epoch
// as an origin, and the key of its MACs. Underneath is Pebble; nobody else sees it. The node's loop appends,
// those who answer clients read results, and at the start everything is handed to the scheduler again.
// It decides nothing, and knows neither peers nor blobs' bytes.
//
// # On disk
//
// Numbers in keys are big-endian, so that keys sort as numbers do. The first byte is the kind:
//
//	m <name>                            the journal itself: "format" u32, "epoch" u64, "key" 32 bytes, "awake" u64 ns
//	j <job 16> 1                        JobRecord: protobuf Job
//	j <job 16> 2 <first u32>            TasksRecord: inputs (below)
//	j <job 16> 3                        ClosedRecord: u32 count
//	j <job 16> 4 <worker>               GrantedRecord: empty
//	j <job 16> 5 <seq u32>              DoneRecord: uvarint attempts, uvarint length, worker, protobuf Outcome
//	j <job 16> 6                        CancelRecord: the reason
//	j <job 16> 7                        CancelRecord of a halted job: the reason
//	j <job 16> 8 <index u32>            TroubleRecord: uvarints attempts, failed, deaths, losses, epoch and n of the last
//	j <job 16> 9                        EndedRecord: u64 ns
//	g <job 16>                          ForgetRecord: u64 ns, until when the id is refused
//	a <origin>                          AwayRecord: u64 ns
//	h <uvarint length, origin> <job 16> <index u32> <epoch u64> <n u32>
//	                                    HeldRecord: protobuf Outcome
//
// A job is one range of keys: one scan restores it in the order that Restore wants, one range delete forgets it.
// The key 5 makes a job's results readable from a cursor.
//
// Inputs are a uvarint count, then for each a uvarint: twice its length, and its bytes; or 1, the 32 bytes
// of a blob's id and a uvarint, its size. Where a task reads blobs besides, a 3 comes first, and a uvarint count of them, id and
// size of each. A TasksRecord is cut into portions of at most 1024 inputs and about
// 64 KiB, so that a few inputs can be read without all, and an input in use does not hold many others in memory.
//
// # Disk errors
//
// Pebble cannot go on after a failed write or sync of its log: it calls Logger.Fatalf, panics with its locks
// held, and where the log is rotated the panic unlocks an unlocked mutex, which no program survives. So no such error ever reaches
// it. The file system handed to it (disk.go) notes the first one, which Run, Append and all others
// return from then on, and stops the goroutine that met it, and every one that tries to write after it, for ever. What was reported as
// synced stays as it is on disk; the process has to end.
//
// Want of room is another matter: it passes. A write, create or rename that finds none removes the ballast, a file that keeps room for
// this, and is then held and tried again until there is room. Nothing behind it is reported as written meanwhile; what is in the
// store can be read. A sync that fails ends the journal, whatever the reason.
package journal
