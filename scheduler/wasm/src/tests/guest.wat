;; A plugin by hand. Of each slot it keeps the CPU that is to be had and that is taken; it answers from fixed places, and what it is handed is forgotten after each call.
(module
  (import "gantry:scheduler/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  (memory (export "memory") 64)
  (data (i32.const 512) "node(s) had no CPU left")
  (data (i32.const 576) "not today")
  (data (i32.const 640) "no such argument")
  (global $told (mut i32) (i32.const 0))
  (global $heap (mut i32) (i32.const 262144))

  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at
      (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (func $forget (global.set $heap (i32.const 262144)))

  ;; Where a slot is kept: 16 bytes each from 65536 on.
  (func $place (param $slot i32) (result i32)
    (i32.add (i32.const 65536) (i32.mul (local.get $slot) (i32.const 16))))

  ;; result<description, string>
  (func (export "gantry:scheduler/plugin@0.1.0#configure") (param $text i32) (param $length i32) (result i32)
    (if (i32.gt_u (local.get $length) (i32.const 2))
      (then
        (call $log (i32.const 2) (i32.const 640) (i32.const 16))
        (i32.store8 (i32.const 0) (i32.const 1))
        (i32.store (i32.const 4) (i32.const 640))
        (i32.store (i32.const 8) (i32.const 16)))
      (else
        (i32.store8 (i32.const 0) (i32.const 0))
        (i32.store8 (i32.const 4) (i32.const 3) (; points ;))
        (i32.store16 (i32.const 6) (i32.const 0x10) (; pod-fields ;))
        (i32.store8 (i32.const 8) (i32.const 0) (; node-fields ;))
        (i32.store8 (i32.const 9) (i32.const 0) (; scope ;))
        (i32.store8 (i32.const 10) (i32.const 0) (; normalize ;))))
    (call $forget)
    (i32.const 0))

  ;; A node takes 128 bytes: its slot at 0, the CPU to be had at 16, the CPU that is taken at 56.
  (func (export "gantry:scheduler/plugin@0.1.0#update-nodes") (param $node i32) (param $count i32)
    (local $place i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $place (call $place (i32.load (local.get $node))))
        (i64.store (local.get $place) (i64.load offset=16 (local.get $node)))
        (i64.store offset=8 (local.get $place) (i64.load offset=56 (local.get $node)))
        (global.set $told (i32.add (global.get $told) (i32.const 1)))
        (local.set $node (i32.add (local.get $node) (i32.const 128)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (call $forget))

  (func $free_percent (param $slot i32) (result i64)
    (local $place i32)
    (local.set $place (call $place (local.get $slot)))
    (i64.div_s
      (i64.mul
        (i64.sub (i64.load (local.get $place)) (i64.load offset=8 (local.get $place)))
        (i64.const 100))
      (i64.load (local.get $place))))
  (func $times_told (param $slot i32) (result i64)
    (i64.extend_i32_u (global.get $told)))

  ;; What the pod's priority asks for: 1 a trap, 2 no end, 3 memory, 6 an error. True: the answer is written already.
  (func $misbehave (param $priority i32) (result i32)
    (if (i32.eq (local.get $priority) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $priority) (i32.const 2)) (then (loop $forever (br $forever))))
    (if (i32.eq (local.get $priority) (i32.const 3))
      (then (drop (memory.grow (i32.const 4096)))))
    (if (i32.eq (local.get $priority) (i32.const 6))
      (then
        (i32.store8 (i32.const 0) (i32.const 1))
        (i32.store (i32.const 4) (i32.const 576))
        (i32.store (i32.const 8) (i32.const 9))
        (return (i32.const 1))))
    (i32.store8 (i32.const 0) (i32.const 0))
    (i32.const 0))

  ;; The slots are at 0 and 4 of the arguments, the pod's priority at 88. result<list<s64>, string>; the list is at 196608.
  (func (export "gantry:scheduler/plugin@0.1.0#score") (param $arguments i32) (result i32)
    (local $slots i32) (local $count i32) (local $priority i32) (local $i i32) (local $score i64)
    (local.set $slots (i32.load (local.get $arguments)))
    (local.set $count (i32.load offset=4 (local.get $arguments)))
    (local.set $priority (i32.load offset=88 (local.get $arguments)))
    (if (call $misbehave (local.get $priority)) (then (return (i32.const 0))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
        (local.set $score
          (call $free_percent
            (i32.load (i32.add (local.get $slots) (i32.shl (local.get $i) (i32.const 2))))))
        (if (i32.eq (local.get $priority) (i32.const 5)) (then (local.set $score (i64.const 101))))
        (if (i32.eq (local.get $priority) (i32.const 7)) (then (local.set $score (i64.const -1))))
        (i64.store
          (i32.add (i32.const 196608) (i32.shl (local.get $i) (i32.const 3)))
          (local.get $score))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (i32.store (i32.const 4) (i32.const 196608))
    (i32.store (i32.const 8)
      (i32.sub (local.get $count) (i32.eq (local.get $priority) (i32.const 4))))
    (i32.const 0))
  (func (export "cabi_post_gantry:scheduler/plugin@0.1.0#score") (param i32) (call $forget))

  ;; result<verdicts, string>; the verdicts are at 196608, the one rejection at 128.
  (func (export "gantry:scheduler/plugin@0.1.0#filter") (param $arguments i32) (result i32)
    (local $slots i32) (local $count i32) (local $priority i32) (local $i i32) (local $place i32)
    (local.set $slots (i32.load (local.get $arguments)))
    (local.set $count (i32.load offset=4 (local.get $arguments)))
    (local.set $priority (i32.load offset=88 (local.get $arguments)))
    (if (call $misbehave (local.get $priority)) (then (return (i32.const 0))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
        (local.set $place
          (call $place
            (i32.load (i32.add (local.get $slots) (i32.shl (local.get $i) (i32.const 2))))))
        (i32.store16
          (i32.add (i32.const 196608) (i32.shl (local.get $i) (i32.const 1)))
          (i32.mul
            (i64.le_s (i64.load (local.get $place)) (i64.load offset=8 (local.get $place)))
            (select (i32.const 2) (i32.const 1) (i32.eq (local.get $priority) (i32.const 5)))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (i32.store (i32.const 4) (i32.const 196608))
    (i32.store (i32.const 8)
      (i32.sub (local.get $count) (i32.eq (local.get $priority) (i32.const 4))))
    (i32.store8 (i32.const 128) (i32.const 0))
    (i32.store (i32.const 132) (i32.const 512))
    (i32.store (i32.const 136) (i32.const 23))
    (i32.store (i32.const 12) (i32.const 128))
    (i32.store (i32.const 16) (i32.const 1))
    (i32.const 0))
  (func (export "cabi_post_gantry:scheduler/plugin@0.1.0#filter") (param i32) (call $forget))
)
