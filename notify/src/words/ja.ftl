# 通知の言葉。題、起きたこと(.what)、qctl がしたこと(.did)、あなたにできること(.can)。
# 複数をまとめるときは .many と .item。プログラムの言葉は「原文」として引用し、ほかには混ぜない。

cause = { $cause ->
    [exit] 終了コード { $code } で終わりました
    [signal] シグナル { $signal } で止められました
    [time_limit] 制限時間になりました
    [out_of_memory] メモリが足りなくなりました
    [cannot_start] 起動できませんでした
    [worker_lost] 動いていたマシンが止まったか、再起動しました
    [shim_lost] 見張りのプロセスが強制終了されました
    [record_gone] ワーカーから記録が消え、長い間様子がわかりませんでした
    [lease_expired] 動いていたマシンとの連絡が長く途切れました
    [gpu_fault] { gpu-fault }
    [gpu_fallback] { $fault ->
        [unused] GPU を割り当てたのに、処理中の { $unused }間まったく使っていませんでした
        [slow] 1 件あたりの時間が以前の { $number } 倍かかり、GPU を使っていないようでした
       *[other] 割り当てた GPU を使わずに計算していました
    }
    [silence] 長い間何も出力しませんでした
    [contradicted] 成功と報告しましたが、出力の内容と食い違っています
    [cancelled] 取り消されました
    [checkpointed] 途中の状態を保存して、いったん終わりました
    [drill] 続けられるか試すために、わざと中断しました
    [void] 一度も始まりませんでした
   *[other] 終わりました({ $cause })
}
gpu-fault = { $fault ->
    [lost] GPU { $gpu } が故障し、ドライバーから見えなくなりました
    [memory] GPU { $gpu } のメモリに直せないエラーが出ました
    [xid] GPU { $gpu } が故障しました(ドライバーのエラー Xid { $number })
    [output] 出力によると、GPU でエラーが起きました
    [silent] GPU のドライバーが応答しません
    [unfit] GPU { $gpu } は使える状態ではありません
   *[other] GPU が故障しました
}
last-line = 最後の行: { $line }
# だいぶ前のことを知らせるとき、または知らせる前に何度も起きたとき。
at = { $at } のことです。
times = { $first } から { $times } 回ありました。
quote = 原文:「{ $quote }」
# コーディネーターの仕事。
part = { $key ->
    [dispatcher] ジョブの開始
    [dependents] ほかのジョブを待つジョブの開始
    [overlooked-dependents] ほかのジョブを待つジョブの開始
    [waits] 時刻を待つジョブの開始
    [leases] ワーカーの見守り
    [queue-watch] 順番待ちの見守り
    [heartbeats-and-progress] ジョブの進みぐあいの記録
    [measures] 計測値の記録
    [old-measures] 古い計測値の片づけ
    [draining-workers] ワーカーを空にすること
    [alarms] 警報の記録
    [checkpoints] 保存された途中の状態の見守り
    [request-ids] 古い要求の片づけ
    [retention] 古い記録の削除
   *[other] { $name }
}
and-more = ほか { $count } 件

attempt_failed = ジョブ { $job }「{ $name }」が失敗しました({ $stops ->
        [no] 保留中です
       *[yes] やり直します
    })
    .what = { $worker } で開始から { $ran } 後: { $reason }。
    .did = { $stops ->
        [no] 保留を解くまで、やり直しません。
       *[yes] { $told ->
            [late] { $next } に自動でやり直すことになっていました。
           *[soon] { $next } に自動でやり直します。
        }
    }{ $left ->
        [0] やり直しはこれが最後です
       *[other] そのあとさらに { $left } 回やり直せます
    }。
    .can = { $stops ->
        [no] 見るには: qctl logs { $job } 続けるには: qctl release { $job }
       *[yes] 何もしなくて大丈夫です。見るには: qctl logs { $job }
    }
    .many = { $count } 件のジョブが失敗しました(やり直します)
    .item = { $job } { $name }: { $reason }

job_failed = ジョブ { $job }「{ $name }」が失敗しました
    .what = { $worker } で開始から { $ran } 後: { $reason }。
    .did = もうやり直しません。
    .can = 見るには: qctl logs { $job } もう一度動かすには: qctl retry { $job }
    .many = { $count } 件のジョブが失敗しました
    .item = { $job } { $name }: { $reason }

job_succeeded = ジョブ { $job }「{ $name }」が成功しました
    .what = { $worker } で { $ran } かかりました。
    .many = { $count } 件のジョブが成功しました
    .item = { $job } { $name }: { $ran }

job_recovered = ジョブ { $job }「{ $name }」はやり直して成功しました
    .what = 前に失敗しましたが、今度は { $worker } で { $ran } かけて成功しました。
    .many = { $count } 件のジョブがやり直して成功しました
    .item = { $job } { $name }: { $ran }

job_cancelled = ジョブ { $job }「{ $name }」は取り消されました
    .what = { $worker } で開始から { $ran } 後でした。
    .many = { $count } 件のジョブが取り消されました
    .item = { $job } { $name }

job_skipped = ジョブ { $job }「{ $name }」は実行されません
    .what = { $state ->
        [succeeded] ジョブ { $other } が失敗したときに動く予定でしたが、成功しました。
        [failed] ジョブ { $other } のあとに動く予定でしたが、失敗しました。
        [cancelled] ジョブ { $other } のあとに動く予定でしたが、取り消されました。
       *[deleted] ジョブ { $other } のあとに動く予定でしたが、もうありません。
    }
    .did = 開始せずに取り消しました。
    .can = { $state ->
        [failed] 元のジョブが成功したら、もう一度: qctl retry { $job }
        [cancelled] 元のジョブが成功したら、もう一度: qctl retry { $job }
       *[other] それでも動かすには: qctl retry { $job }
    }
    .many = { $count } 件のジョブは実行されません
    .item = { $job } { $name }

job_held = ジョブ { $job }「{ $name }」は止まって、あなたを待っています
    .what = { $held ->
        [crash_loop] 開始してすぐにマシンが失われることが 2 回続きました。このジョブが原因かもしれません。
        [checkpoint_elsewhere] 途中の状態を持つマシン { $worker } が戻りません。
       *[other] このままでは続けられません({ $held })。
    }
    .did = 順番はそのままで、開始しません。
    .can = 続けるには: qctl release { $job } やめるには: qctl cancel { $job }
    .many = { $count } 件のジョブが止まって、あなたを待っています
    .item = { $job } { $name }

job_interrupted = ジョブ { $job }「{ $name }」が中断しました(続けます)
    .what = { $worker } で開始から { $ran } 後: { $reason }。
    .did = { $told ->
        [late] すぐにもう一度始めることになっていました。
       *[soon] すぐにもう一度始めます。
    }保存した状態があればその続きからです。{ $left ->
        [0] 再開できるのはこれが最後です
       *[other] そのあとさらに { $left } 回続けられます
    }。
    .can = 何もしなくて大丈夫です。見るには: qctl show { $job }
    .many = { $count } 件のジョブが中断しました(続けます)
    .item = { $job } { $name }: { $reason }

job_record_gone = ジョブ { $job }「{ $name }」の様子がわからなくなりました
    .what = { $since } から、ワーカー { $worker } のファイルにこのジョブの記録がありません。フォルダーが空になったか、入れ替わったようです。ジョブは今も動いているかもしれません。
    .did = 今は手をつけません。{ $next } までに何もわからなければ、あきらめて{ $left ->
        [0] 終わりにします
       *[other] もう一度始めます。保存した状態があればその続きからです
    }。
    .can = ワーカーのフォルダーを動かしたのなら、元に戻してワーカーを起動し直してください。そうでなければ、{ $worker } でプログラムがまだ動いているか見て、二重に動くと困るなら止めてください。
    .many = { $count } 件のジョブの様子がわからなくなりました
    .item = { $job } { $name }({ $worker })

job_silent = ジョブ { $job }「{ $name }」が { $ran } にわたって何も出力していません
    .what = { $worker } で { $since } から。{ $doing ->
        [gpu] GPU は動いています。
        [computes] 計算は続いています。
        [transfers] 読み書きは続いています。
        [device] 応答しないディスクや機器を待っています。
        [nothing] 何もしていません。止まっているかもしれません。
       *[unknown] 何をしているかは分かりませんでした。
    }
    .did = 手をつけていません。{ $stops ->
        [yes] このまま何も出力しなければ { $next } に止めます。
       *[no] {""}
    }
    .can = 何をしているか見るには: qctl show { $job } やめるには: qctl cancel { $job }
    .many = { $count } 件のジョブが何も出力していません
    .item = { $job } { $name }({ $since } から)

job_still_silent = ジョブ { $job }「{ $name }」はまだ何も出力していません({ $ran })
    .what = { $worker } で { $since } から。{ $doing ->
        [gpu] GPU は動いています。
        [computes] 計算は続いています。
        [transfers] 読み書きは続いています。
        [device] 応答しないディスクや機器を待っています。
        [nothing] 何もしていません。止まっているかもしれません。
       *[unknown] 何をしているかは分かりませんでした。
    }
    .did = 手をつけていません。{ $stops ->
        [yes] このまま何も出力しなければ { $next } に止めます。
       *[no] {""}
    }
    .can = 何をしているか見るには: qctl show { $job } やめるには: qctl cancel { $job }
    .many = { $count } 件のジョブがまだ何も出力していません
    .item = { $job } { $name }({ $since } から)

job_silence_ended = ジョブ { $job }「{ $name }」は何も出力しないので止めました(続けます)
    .what = { $worker } で開始から { $ran } 後。{ $doing ->
        [gpu] GPU は動いていました。
        [computes] 計算は続いていました。
        [transfers] 読み書きは続いていました。
        [device] 応答しないディスクや機器を待っていました。
        [nothing] 何もしていませんでした。
       *[unknown] 何をしていたかは分かりませんでした。
    }
    .did = { $from ->
        [checkpoint] すぐにもう一度、チェックポイント { $checkpoint } の続きから始めます。
       *[start] すぐにもう一度、最初から始めます。
    }{ $left ->
        [0] 再開できるのはこれが最後です
       *[other] そのあとさらに { $left } 回続けられます
    }。
    .can = どこで止まったか見るには: qctl show { $job } もともと静かなジョブなら、時間を延ばして登録してください: --silence stop=1h
    .many = { $count } 件のジョブを、何も出力しないので止めました(続けます)
    .item = { $job } { $name }

job_refused = ジョブ { $job }「{ $name }」を { $worker } が断りました
    .what = そこでは始められませんでした。
    .did = 数秒おきにもう一度頼みます。
    .can = 待っている理由を見るには: qctl why { $job }
    .many = { $count } 件のジョブが断られました
    .item = { $job } { $name }: { $worker }

worker_unreachable = ワーカー { $worker } と連絡がとれません
    .what = { $since } から何も届きません。ジョブ { $job }「{ $name }」がそこで動いていて、今も動いているかもしれません。
    .did = ジョブには手をつけません。長く戻らないときだけ、別の場所で始めます。
    .can = マシンの電源とネットワークを確かめてください。見るには: qctl workers
    .many = { $count } 台のワーカーと連絡がとれません
    .item = { $worker }({ $since } から)

worker_back = ワーカー { $worker } が戻りました
    .what = { $since } から { $until } まで({ $ran })、連絡がとれませんでした。
    .many = { $count } 台のワーカーが戻りました
    .item = { $worker }

queue_stands = ジョブが待っていますが、ひとつも動いていません
    .what = { $since } から、ひとつも動いていません。{ $doing ->
        [away] つながっているワーカーがありません。
       *[full] つながっているワーカーは、今はどれも引き受けられません。
    }いちばん長く待っているのはジョブ { $job }「{ $name }」です。
    .did = 引き受けられるワーカーがあれば、すぐに始まります。
    .can = 足りないものを見るには: qctl why { $job } と qctl workers
    .many = ジョブが待っていますが、ひとつも動いていません
    .item = { $since } から

queue_moves = ジョブが待たされる状態は終わりました
    .what = { $since } から { $until } まで({ $ran })、ジョブが待っているのにひとつも動いていませんでした。
    .many = ジョブが待たされる状態が { $count } 回あり、今は終わっています
    .item = { $since } から

submission_refused = ジョブの登録を断りました
    .what = { $name } が登録しようとしたジョブは、このままでは受け付けられません。
    .did = 何も登録していません。
    .can = 直してから、もう一度登録してください。
    .many = { $count } 件の登録を断りました
    .item = { $name }: { $quote }

database_away = qctl がデータベースを使えません
    .what = { $worker } で { $since } から応答がありません。
    .did = 動いているジョブはそのまま続き、何も失われません。戻るまで新しいジョブは受け付けず、開始もしません。ずっと試し続けます。
    .can = 自然に戻らないときは qctl status を見て、{ $worker } のディスクとログを確かめてください。
    .many = qctl がデータベースを { $count } 回使えなくなりました
    .item = { $since } から

database_back = qctl のデータベースが戻りました
    .what = { $worker } で { $since } から { $until } まで({ $ran })、使えませんでした。
    .did = 動いていたジョブには手をつけていません。キューは再開しました。
    .many = qctl のデータベースが { $count } 回戻りました
    .item = { $since } から { $ran }

database_refuses = データベースに書き込めません
    .what = { $worker } で { $since } から拒否されています。
    .did = 動いているジョブはそのまま続きます。書き込めるまで新しいジョブは受け付けず、開始もしません。ずっと試し続けます。
    .can = データベースのディスクを空けるか、読み取り専用になっていないか確かめてください。
    .many = データベースに { $count } 回書き込めませんでした
    .item = { $since } から

database_stores = データベースにまた書き込めます
    .what = { $worker } で { $since } から { $until } まで({ $ran })、拒否されていました。
    .did = 動いていたジョブには手をつけていません。キューは再開しました。
    .many = データベースへの書き込みが { $count } 回復旧しました
    .item = { $since } から { $ran }

database_restarted = qctl のデータベースが再起動しました
    .what = { $worker } で { $since } から { $ran } の間、使えませんでした。今は戻っています。
    .did = 動いていたジョブには手をつけていません。何も失われていません。
    .can = 何もしなくて大丈夫です。繰り返すときは { $worker } のメモリとディスクを確かめてください。
    .many = qctl のデータベースが { $count } 回再起動しました
    .item = { $since } から { $ran }

disk_nearly_full = { $worker } のディスクの空きが残りわずかです
    .what = { $since } から、残りは { $value } です({ $limit } を下回りました)。
    .did = 今はすべて続いています。空きがなくなると、ジョブの出力や保存した状態が失われます。
    .can = 空きを作ってください。古いジョブを出力ごと消すには: qctl cleanup
    .many = { $count } 台のディスクの空きが残りわずかです
    .item = { $worker }: 残り { $value }

disk_well = { $worker } のディスクに空きができました
    .what = { $since } から { $until } まで({ $ran })、空きが残りわずかでした。
    .many = { $count } 台のディスクに空きができました
    .item = { $worker }

job_busy = ジョブ { $job }「{ $name }」がプロセッサーを使い切っています
    .what = { $worker } で { $since } から: マシン全体の { $value }。
    .did = そのまま続けます。このジョブについては一度だけ知らせます。
    .can = 重い計算なら、何もしなくて大丈夫です。見るには: qctl show { $job }
    .many = { $count } 件のジョブがプロセッサーを使い切っています
    .item = { $job } { $name }: { $value }

job_grows = ジョブ { $job }「{ $name }」のメモリが増え続けています
    .what = { $worker } で、休みなく { $value } 増えました。
    .did = そのまま続けます。このジョブについては一度だけ知らせます。
    .can = 増えるはずがないなら、メモリを解放し忘れているのかもしれません(メモリリーク)。足りなくなると止まります。見るには: qctl show { $job }
    .many = { $count } 件のジョブのメモリが増え続けています
    .item = { $job } { $name }: { $value } 増えました

job_gpu_full = ジョブ { $job }「{ $name }」が GPU のメモリを使い切りそうです
    .what = { $worker } で { $since } から: { $value } を使っています。
    .did = そのまま続けます。このジョブについては一度だけ知らせます。
    .can = そのつもりなら、何もしなくて大丈夫です。メモリ不足で止まるなら、一度に扱う量を減らしてください。見るには: qctl show { $job }
    .many = { $count } 件のジョブが GPU のメモリを使い切りそうです
    .item = { $job } { $name }: { $value }

job_long = ジョブ { $job }「{ $name }」はもう { $ran } 動き続けています
    .what = { $worker } で { $since } から動いています。
    .did = そのまま続けます。このジョブについては一度だけ知らせます。
    .can = 長くかかる予定なら、何もしなくて大丈夫です。見るには: qctl show { $job }
    .many = { $count } 件のジョブが長く動いています
    .item = { $job } { $name }: { $ran }

machine_busy = { $worker } のプロセッサーに余裕がありません
    .what = { $since } から: { $value }。一つのジョブだけのせいではありません。
    .did = ジョブは続きますが、遅くなるかもしれません。知らせるのは一日に一度です。
    .can = 遅すぎるなら、同時に動かす数を減らすか、ほかのプログラムを確かめてください。見るには: qctl health
    .many = { $count } 台のプロセッサーに余裕がありません
    .item = { $worker }: { $value }

memory_nearly_full = { $worker } のメモリの空きが残りわずかです
    .what = { $since } から: { $value } を使っています。
    .did = ジョブは続いています。空きがなくなると、システムがプログラムを止め、ジョブが止まることもあります。
    .can = そこで要らないものを終わらせてください。何が使っているか見るには: qctl workers
    .many = { $count } 台のメモリの空きが残りわずかです
    .item = { $worker }: { $value }

memory_well = { $worker } のメモリに空きができました
    .what = { $since } から { $until } まで({ $ran })、空きが残りわずかでした。
    .many = { $count } 台のメモリに空きができました
    .item = { $worker }

gpu_hot = { $worker } の GPU が熱くなっています
    .what = { $since } から: { $value }。
    .did = ジョブは続いています。熱すぎると GPU は自動的に性能を下げます。知らせるのは六時間に一度までです。
    .can = ファン、ほこり、部屋の温度を確かめてください。見るには: qctl health
    .many = { $count } 台のマシンで GPU が熱くなっています
    .item = { $worker }: { $value }

out_of_memory = { $worker } のメモリが足りなくなりました
    .what = { $since } に、メモリを空けるためにシステムがプログラムを { $value } 個強制終了しました。ジョブが止められた形跡はありません。
    .did = ジョブは続いています。
    .can = そこで同時に動かすジョブを減らすか、ほかのプログラムを確かめてください。見るには: qctl workers
    .many = { $count } 台のメモリが足りなくなりました
    .item = { $worker }({ $since })

clock_jumped = { $worker } の時計が戻されました
    .what = { $since } に { $ran } 戻されました。
    .did = ジョブは続いています。制限時間はその時計で計っていません。
    .can = 時計をネットワークで合わせているか確かめてください。そこのプログラムが書いた時刻は正しくないかもしれません。
    .many = { $count } 台の時計が戻されました
    .item = { $worker }: { $ran }

looks_missed = { $worker } がジョブの様子を見られません
    .what = 返事はありますが、{ $since } からマシンの様子を調べられません。
    .did = ジョブは続いていますが、何をどれだけ使っているか見張れず、その警告も出せません。
    .can = ディスクやネットワークのフォルダーが応答していないことが多いです。そのマシンを確かめてください。
    .many = { $count } 台のワーカーがジョブの様子を見られません
    .item = { $worker }({ $since } から)

looks_back = { $worker } がジョブの様子を見られるようになりました
    .what = { $since } から { $until } まで({ $ran })、見張れませんでした。
    .many = { $count } 台のワーカーがジョブの様子を見られるようになりました
    .item = { $worker }

coordinator_crashed = qctl が落ちて、また動いています
    .what = { $worker } のコーディネーターが { $since } ごろ突然終わり、{ $next } に戻りました。
    .did = 動いていたジョブには手をつけていません。何も失われていません。
    .can = 何もしなくて大丈夫です。繰り返すときはログを見てください: { $text }
    .many = qctl が { $count } 回落ちて、また動いています
    .item = { $since } ごろ

coordinator_away = qctl のコーディネーターと連絡がとれません
    .what = { $name ->
        [fails] { $worker } で { $since } から、何度も終わってしまうか、起動できません。
       *[silent] ワーカー { $worker } に { $since } から何も届きません。
    }
    .did = 動いているジョブは続き、結果も保存されます。新しいジョブは始まりません。ずっと試し続けます。
    .can = コーディネーターのマシンの電源を確かめ、そこで qctl status か qctl up を実行してください。
    .many = qctl のコーディネーターと { $count } 回連絡がとれませんでした
    .item = { $since } から

coordinator_back = qctl のコーディネーターが戻りました
    .what = { $worker } でまた動いています。{ $since } から { $until } まで({ $ran })、連絡がとれませんでした。
    .many = qctl のコーディネーターが { $count } 回戻りました
    .item = { $ran }

gpu_faulty = { $fault ->
        [silent] { $worker } の GPU ドライバーが応答しません
       *[other] { $worker } の GPU が使えません
    }
    .what = { $fault ->
        [lost] { $gpu }({ $since } から): ドライバーから見えなくなりました。
        [memory] { $gpu }({ $since } から): メモリに直せないエラーが出ています。
        [xid] { $gpu }({ $since } から): ドライバーがエラー Xid { $number } を報告しています。
        [fails_jobs] { $gpu }({ $since } から): ドライバーは正常だと言いますが、ジョブが二つ続けて失敗しました。
        [silent] { $since } からです。動いているジョブはそのまま続いているかもしれません。
       *[other] { $gpu }({ $since } からです)。
    }
    .did = { $fault ->
        [fails_jobs] この GPU では三十分間ジョブを始めません。そのあとジョブ一つで試し、また失敗すれば休みを倍にします(八時間まで)。
       *[other] この GPU ではジョブを始めません。使えるかどうかは繰り返し確かめています。
    }
    .can = { $fault ->
        [fails_jobs] 見るには: qctl workers すぐにまた使うには: qctl worker resume { $worker }
       *[other] 見るには: qctl workers 戻らないときは、マシンを再起動してください。
    }
    .many = { $count } 個の GPU が使えません
    .item = { $worker }: { $gpu }

gpu_works = { $fault ->
        [silent] { $worker } の GPU ドライバーがまた応答しています
       *[other] { $worker } の GPU がまた使えます
    }
    .what = { $gpu }。{ $since } から { $until } まで({ $ran })、使えませんでした。
    .did = またこの GPU でジョブを始めます。
    .many = { $count } 個の GPU がまた使えます
    .item = { $worker }: { $gpu }

panic = qctl の内部の不具合: { $name }
    .what = { $worker } の { $place } です。
    .did = { $key ->
        [qctl-worker-shim] 見守っていたジョブは中断し、保存した状態から続きます。
       *[other] この部分だけが止まり、できるものは自動で始め直します。動いているジョブには手をつけません。
    }
    .can = この文面のまま報告してください。
    .many = qctl の内部の不具合 { $count } 件
    .item = { $name }: { $quote }

trouble = qctl の仕事の一部が進みません
    .what = { $since } から、何度やっても失敗しています: { $part }。
    .did = ずっと試し続けます。動いているジョブには手をつけません。
    .can = 見るには: qctl status
    .many = qctl の仕事 { $count } 件が進みません
    .item = { $part }

trouble_over = qctl の仕事の一部がまた進むようになりました
    .what = また進みます: { $part }。{ $since } から { $until } まで({ $ran })、失敗していました。
    .many = { $count } 件の問題が終わりました
    .item = { $part }

channel_refused = { $name } で通知を送れません
    .what = { $name } が受け取りません。
    .did = 送れなかったものは残してあります: qctl notices
    .can = 設定を直して、試してください: qctl notices test
    .many = 通知の送り先 { $count } 件に拒否されています
    .item = { $name }: { $quote }

channel_works = { $name } で通知をまた送れます
    .what = { $since } から { $until } まで({ $ran })、拒否されていました。
    .many = 通知の送り先 { $count } 件がまた使えます
    .item = { $name }

channel_low = { $name } で今月送れる通知は、あと { $left } 件です
    .what = 使い切ると、来月まで届きません。
    .did = それまでは送り続けます。
    .can = 減らすには notify.toml の minimum を上げてください。送ったものを見るには: qctl notices --statistics
    .many = 通知の送り先 { $count } 件が残りわずかです
    .item = { $name }: あと { $left } 件

test = qctl からの通知が届きました
    .what = { $name } が頼んだ試しの通知です。
    .many = 試しの通知 { $count } 件
    .item = { $name }
